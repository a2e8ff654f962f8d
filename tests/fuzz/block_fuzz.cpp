// Usage blocks from a hostile file: opening and reading stay inside the bytes and the memory bound, whatever they hold. The input
// is taken once as a sealed block and once as packed columns (which the checksum would otherwise keep the fuzzer from reaching).

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "usage/block.hpp"

namespace {

void read_all(std::string_view packed) {
    using namespace latchkey::usage;
    auto reader = block_reader::over(packed);
    if (!reader) return;
    record r;
    std::uint64_t n = 0;
    std::uint64_t sum = 0;
    while (reader->next(r)) {
        ++n;
        for (auto const text : {r.request_id, r.application, r.application_id, r.key_id, r.api, r.method, r.host, r.path})
            for (char const c : text) sum += static_cast<unsigned char>(c);
        if (to_string(r.end) == "unknown") std::abort();
    }
    if (n > reader->records() || n > block_records_max) std::abort();
    if (!reader->damaged() && n != reader->records()) std::abort();
    [[maybe_unused]] static volatile std::uint64_t sink;
    sink = sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    using namespace latchkey::usage;
    std::string_view const input(reinterpret_cast<char const*>(data), size);
    read_all(input);
    static block_opener opener;
    std::string packed;
    if (opener.open(input, packed)) {
        if (packed.size() > block_packed_bytes_max) std::abort();
        read_all(packed);
    }
    return 0;
}
