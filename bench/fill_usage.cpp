// bench_fill DIR COUNT: makes DIR/usage.db with COUNT records, through the journal as the flusher writes it. For bench/export.py.

#include <fmt/format.h>
#include <sys/stat.h>

#include <charconv>
#include <cstring>
#include <stdexcept>

#include "bench/micro/traffic.hpp"
#include "usage/block.hpp"
#include "usage/journal.hpp"

namespace {

using namespace latchkey;

void fill(std::string const& folder, std::uint64_t count) {
    ::mkdir(folder.c_str(), 0700);  // where it is there already, opening the file says the rest
    auto const into = usage::journal::open(folder + "/usage.db", usage::journal::mode::read_write).value();
    bench::traffic const traffic(64 * usage::block_records);
    auto const span = traffic.records.back().time_ms - traffic.records.front().time_ms + 1;
    usage::block_packer packer;
    std::uint64_t written = 0;
    auto const hand_over = [&] {
        into->append("fill", written, packer.meta(), packer.seal().value()).value();
        packer.clear();
    };
    for (; written < count; ++written) {
        auto r = traffic.records[written % traffic.records.size()];
        r.time_ms += static_cast<std::int64_t>(written / traffic.records.size()) * span;
        if (packer.add(r)) continue;
        hand_over();
        packer.add(r);
    }
    if (packer.meta().records != 0) hand_over();
}

}  // namespace

int main(int argc, char** argv) {
    std::uint64_t count = 0;
    char const* const number = argc == 3 ? argv[2] : "";
    auto const [end, ec] = std::from_chars(number, number + std::strlen(number), count);
    if (argc != 3 || ec != std::errc{} || *end != '\0') {
        fmt::print(stderr, "usage: bench_fill DIR COUNT\n");
        return 2;
    }
    try {
        fill(argv[1], count);
    } catch (std::exception const& e) {
        fmt::print(stderr, "bench_fill: {}\n", e.what());
        return 1;
    }
    return 0;
}
