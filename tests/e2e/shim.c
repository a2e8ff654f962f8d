/* Preloaded into the program by tests: plays a disk that fails, a wall clock that jumps, a name that moves, a system without
   threads, one without splice() and one that holds little for the network. What it plays stands in a file of six 64-bit words, named
   by LATCHKEY_SHIM: how many seconds CLOCK_REALTIME is off; the errno with which writes to database files fail (0: none); the last
   byte of the address 127.0.0.x of "played.test" (0: it cannot be resolved); the error with which threads are not started (0: they
   are); the errno with which splice() fails (0: it does not), plus 256 where only that out of a pipe fails; the size of the send
   buffers of the sockets that are connected (0: as they are). Other clocks, files and names stay as they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[6];
static volatile int64_t* words = none;

__attribute__((constructor)) static void map_words(void) {
    char const* const name = getenv("LATCHKEY_SHIM");
    int const fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void* const p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) words = p;
    if (fd >= 0) close(fd);
}

static int fails(int fd) {
    char link[64];
    char path[4096];
    int const code = (int)words[1];
    ssize_t n;
    if (code == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    if (strstr(path, ".db") == NULL) return 0;
    errno = code;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, void const* data, size_t size, off64_t at) { return fails(fd) ? -1 : REAL(pwrite64)(fd, data, size, at); }
ssize_t pwrite(int fd, void const* data, size_t size, off_t at) { return fails(fd) ? -1 : REAL(pwrite)(fd, data, size, at); }
ssize_t write(int fd, void const* data, size_t size) { return fails(fd) ? -1 : REAL(write)(fd, data, size); }
int fsync(int fd) { return fails(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails(fd) ? -1 : REAL(fdatasync)(fd); }
int ftruncate64(int fd, off64_t size) { return fails(fd) ? -1 : REAL(ftruncate64)(fd, size); }
int ftruncate(int fd, off_t size) { return fails(fd) ? -1 : REAL(ftruncate)(fd, size); }

int clock_gettime(clockid_t which, struct timespec* out) {
    int const r = REAL(clock_gettime)(which, out);
    if (r == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) out->tv_sec += (time_t)words[0];
    return r;
}
int gettimeofday(struct timeval* restrict out, void* restrict zone) {
    int const r = REAL(gettimeofday)(out, zone);
    if (r == 0) out->tv_sec += (time_t)words[0];
    return r;
}
int getaddrinfo(char const* restrict node, char const* restrict service, struct addrinfo const* restrict hints,
                struct addrinfo** restrict out) {
    char address[32];
    if (node == NULL || strcmp(node, "played.test") != 0) return REAL(getaddrinfo)(node, service, hints, out);
    if (words[2] == 0) return EAI_AGAIN;
    snprintf(address, sizeof address, "127.0.0.%d", (int)words[2]);
    return REAL(getaddrinfo)(address, service, hints, out);
}
int pthread_create(pthread_t* restrict out, pthread_attr_t const* restrict how, void* (*run)(void*), void* restrict with) {
    return words[3] != 0 ? (int)words[3] : REAL(pthread_create)(out, how, run, with);
}
time_t time(time_t* out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

ssize_t splice(int from, off64_t* at, int to, off64_t* to_at, size_t size, unsigned flags) {
    int const code = (int)words[4];
    struct stat about;
    if (code == 0 || (code >= 256 && (fstat(from, &about) != 0 || !S_ISFIFO(about.st_mode))))
        return REAL(splice)(from, at, to, to_at, size, flags);
    errno = code & 255;
    return -1;
}

int connect(int fd, struct sockaddr const* to, socklen_t size) {
    int const most = (int)words[5];
    if (most != 0) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
    return REAL(connect)(fd, to, size);
}
