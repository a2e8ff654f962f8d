#pragma once
// The upstream side of one worker: for each server its addresses, its health as this worker has seen it, and a pool of idle
// connections, shared by all apis that name it and agree in its limits. One thread.
//
// A connection carries no identity: each request on it is whole (RFC 9112 section 9.3), so which api, application or client it
// served before means nothing to the next. (Schemes that authenticate a connection, as NTLM does, are broken by
// any proxy that pools, within one api too.)

#include <boost/container/small_vector.hpp>
#include <boost/intrusive/list.hpp>
#include <compare>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/prefetch.hpp"
#include "conf/settings.hpp"
#include "gateway/buffer_pool.hpp"
#include "gateway/stream.hpp"
#include "gateway/task.hpp"

namespace latchkey::gateway {

class upstream_pool;
namespace intrusive = boost::intrusive;

// A connection to a server. Idle: it stands in its pool and watches for the other side's close. Leased: it belongs to one
// exchange until give_back() or discard().
class alignas(cache_line_bytes) upstream_connection : public intrusive::list_base_hook<> {
  public:
    upstream_connection(reactor& r, upstream_pool& of) : pool_(of), io(r) {}

    // Whether the other side's kernel has acknowledged any byte written since `sent` (TCP_INFO, RFC 4898): if not, its program
    // cannot have seen the request, and sending it once more elsewhere is safe whatever the method.
    bool peer_has_bytes() const noexcept;

    upstream_pool& pool() const noexcept { return pool_; }
    // Of a pooled one: how long, about, nobody has used it.
    std::int64_t idle_ns(std::int64_t now_ns) const noexcept { return now_ns - idle_since_ns_; }

  private:
    friend class upstream_pool;
    enum class state : std::uint8_t { leased, idle, dead };
    static void on_watch(void* self) noexcept;
    // In the order in which a request meets them (prefetch_idle()).
    upstream_pool& pool_;
    std::int64_t idle_since_ns_ = 0;
    state state_ = state::leased;

  public:
    bool reused = false;     // has served a request before
    std::uint64_t sent = 0;  // bytes written on it before the current exchange
    std::size_t begin = 0;   // bytes of the response that are in hand, in `in`: [begin, end)
    std::size_t end = 0;
    lease in;
    stream io;
};

// A server, and what apis must agree in to share its pool. Where they do not, each sees only what is its own: another api's
// shorter connect deadline takes no server away from it.
struct upstream_server {
    std::string host;
    std::uint16_t port = 0;
    conf::milliseconds connect{};
    conf::milliseconds idle{};
    std::size_t connections_max = 0;  // 0: no limit
    std::size_t idle_max = 0;
    auto operator<=>(upstream_server const&) const = default;
};
upstream_server server_of(conf::api const&, conf::target const&);

class alignas(cache_line_bytes) upstream_pool {
  public:
    upstream_pool(reactor& r, upstream_server server);
    ~upstream_pool();  // close_all() before, and the loop run until count() == 0
    upstream_pool(upstream_pool const&) = delete;
    upstream_pool& operator=(upstream_pool const&) = delete;

    // Addresses to try, in turn. Empty: the name could not be resolved.
    void set_addresses(std::vector<tcp_endpoint> addresses);
    bool resolved() const noexcept { return !addresses_.empty(); }

    std::string_view authority() const noexcept { return authority_; }  // "host:port", as a Host field

    // The most recently used idle connection that has not ended, as far as it is known here; or null.
    upstream_connection* take_idle() noexcept;
    // Asks for the memory of what take_idle() would give.
    void prefetch_idle() const noexcept {
        if (!idle_.empty()) prefetch_bytes<2 * cache_line_bytes>(&idle_.front());
    }
    bool at_limit() const noexcept {
        return server_.connections_max != 0 && leased_.size() + idle_.size() >= server_.connections_max;
    }

    // To be awaited where none was idle: a connection that came back, or null: make one. After a stall many requests find none
    // idle. If each made its own, that would cost more than to serve it, and most would be closed as too many right afterwards,
    // so that the next ones had to make theirs: it might never end. So as long as others come back, they are waited for, in turn.
    // But not for longer than it takes to see whether they do (one look of the loop at the kernel) or, where too few do,
    // wait_for_returned_ns; then some are made a look. It is one, where others do come back: if the worker is what is slow, more
    // connections do not help it, and what it takes to make them is what it would need to catch up. Nobody watched one that was
    // handed on: what has come meanwhile, an end or bytes that no request asked for, is looked for before it is given away.
    class [[nodiscard]] returned : reactor::waiting, public intrusive::slist_base_hook<intrusive::tag<upstream_pool>> {
      public:
        returned(upstream_pool& p, std::int64_t now_ns) : waiting(&resume), pool_(p), since_ns_(now_ns) {}
        bool await_ready() const noexcept { return pool_.waiters_.empty() && pool_.leased_.empty(); }
        void await_suspend(std::coroutine_handle<> h) noexcept {
            awaiting_ = h;
            pool_.wait(*this);
        }
        upstream_connection* await_resume() noexcept;

      private:
        friend class upstream_pool;
        static void resume(waiting&) noexcept;
        upstream_pool& pool_;
        std::int64_t since_ns_;
        upstream_connection* connection_ = nullptr;
        std::coroutine_handle<> awaiting_;
    };
    static constexpr std::int64_t wait_for_returned_ns = 1'000'000;
    static constexpr unsigned made_a_look = 8;
    static constexpr unsigned made_a_look_beside_returned = 1;

    struct connected {
        upstream_connection* connection = nullptr;
        error_code ec;
    };
    // A new connection: each address in turn, all within the connect deadline.
    task<connected> connect(std::int64_t now_ns);

    // The exchange ended cleanly: framing complete both ways, nothing left over.
    void give_back(upstream_connection*, std::int64_t now_ns) noexcept;
    void discard(upstream_connection*) noexcept;

    // Passive health: after failures to connect the server is passed over for a while (1 s, doubling up to 30 s) as long as
    // others are there; one success clears it.
    bool usable(std::int64_t now_ns) const noexcept { return now_ns >= down_until_ns_; }
    std::int64_t down_until() const noexcept { return down_until_ns_; }
    // The first failure is logged, then one a minute, and the first success after it. Where only this machine was short of
    // something (is_shortage), the server is not passed over, and one a minute is all that is logged.
    void failed(std::int64_t now_ns, error_code const& why) noexcept;
    void succeeded() noexcept;

    // Whether the server's last answer was too long for a small buffer: then the next one gets a large buffer at once, for one
    // read and one write of 100 KiB cost a tenth less than two reads and a write.
    bool expects_long() const noexcept { return expects_long_; }
    void expect_long(bool yes) noexcept { expects_long_ = yes; }

    void sweep(std::int64_t now_ns) noexcept;  // deadlines, idle time-outs
    void close_idle() noexcept;
    void close_all() noexcept;
    std::size_t count() const noexcept { return all_count_; }

  private:
    friend class upstream_connection;
    struct look_back : reactor::waiting {
        explicit look_back(upstream_pool& p) : waiting(&look), pool(p) {}
        static void look(waiting&) noexcept;
        upstream_pool& pool;
    };
    void wait(returned&) noexcept;
    void look_again() noexcept;
    void bury(upstream_connection*) noexcept;

    // What each request asks for stands together.
    using connection_list = intrusive::list<upstream_connection>;
    std::int64_t down_until_ns_ = 0;
    std::size_t const idle_max_;  // server_'s
    connection_list idle_;        // newest first
    connection_list leased_;
    intrusive::slist<returned, intrusive::base_hook<intrusive::slist_base_hook<intrusive::tag<upstream_pool>>>,
                     intrusive::cache_last<true>, intrusive::constant_time_size<false>>
        waiters_;                // oldest first
    std::size_t all_count_ = 0;  // with those that only wait for their last operation
    std::string authority_;
    bool expects_long_ = false;
    bool some_returned_ = false;  // since look_back_ was set

    unsigned failures_ = 0;
    std::int64_t complained_ns_ = 0;  // 0: not since the last success
    std::int64_t complained_shortage_ns_ = 0;
    look_back look_back_{*this};  // after each look, as long as somebody waits
    std::uint64_t looks_ = 0;     // the loop's, by then
    reactor& reactor_;
    upstream_server server_;
    std::vector<tcp_endpoint> addresses_;
    std::size_t next_address_ = 0;
};

// One upstream of one api: a server, and the path that is put before those of its requests.
struct target {
    upstream_pool* pool;
    std::string base_path;
};

// The targets of one api, chosen in turn.
class target_group {
  public:
    using target_list = boost::container::small_vector<target, 1>;
    explicit target_group(target_list targets);
    // Ask for the memory of the pool that choose() would look at first, and then for that of a connection of it.
    void prefetch_pool() const noexcept { prefetch_bytes<2 * cache_line_bytes>(&first()); }
    void prefetch_connection() const noexcept { first().prefetch_idle(); }
    // The next usable target that is not in `tried` (a bit per index, the first 64); where none is usable, the one that has been
    // down longest. Null: all are tried.
    target* choose(std::int64_t now_ns, std::uint64_t tried) noexcept;
    // Its bit, with those of the other targets on the same server. 0: it is beyond the 64th.
    std::uint64_t bits_of(target const&) const noexcept;
    target_list const& targets() const noexcept { return targets_; }
    // The most that base path and authority of one target have together, in bytes.
    std::size_t lines_max() const noexcept { return lines_max_; }

  private:
    upstream_pool& first() const noexcept { return *targets_[next_ < targets_.size() ? next_ : 0].pool; }
    std::size_t next_ = 0;
    std::size_t lines_max_ = 0;
    target_list targets_;
};

// All pools of a worker, and its apis' targets on them.
class upstreams {
  public:
    upstreams(reactor& r, std::vector<conf::api> const& apis);
    target_group& group(std::size_t api) noexcept { return groups_[api]; }
    // Of every pool whose server has this name and port.
    void set_addresses(std::string const& host, std::uint16_t port, std::vector<tcp_endpoint> const& addresses);
    void sweep(std::int64_t now_ns) noexcept;
    void close_all() noexcept;
    std::size_t count() const noexcept;  // connections
    std::size_t pools() const noexcept { return pools_.size(); }

  private:
    std::map<upstream_server, upstream_pool> pools_;
    std::vector<upstream_pool*> all_;   // of them, for each sweep
    std::vector<target_group> groups_;  // by the api's index
};

}  // namespace latchkey::gateway
