#pragma once
// Chunked coding (RFC 9112 section 7.1), read strictly: sizes are 1 to 16 hex digits, lines end in CRLF, extensions and
// trailers are bounded and checked. Works in place: payload is moved together at the front of the bytes it is given, so what is
// forwarded is framed anew and never with a stranger's sizes or extensions. Pure; no allocation until a trailer comes.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace latchkey::gateway {

class chunk_decoder {
  public:
    enum class state : std::uint8_t { more, done, bad };

    struct step {
        state now = state::more;
        std::size_t consumed = 0;  // bytes of the input that belong to this body
        std::size_t payload = 0;   // bytes of payload, standing at the front of the input
    };

    // Decodes what is there. After `done` or `bad` it must not be called again. Input behind the end is left untouched.
    step decode(char* data, std::size_t size) noexcept;

    // After `done`: the trailer fields that may be passed on, as "name: value\r\n" lines. Others (framing, routing, identity)
    // make the body `bad` in a request and are left out of a response.
    std::string_view trailers() const noexcept { return trailers_; }
    // True: a forbidden trailer field is left out instead of refused (responses).
    void drop_forbidden() noexcept { drop_forbidden_ = true; }

    bool done() const noexcept { return where_ == place::end; }

  private:
    enum class place : std::uint8_t {
        size_first,
        size,
        size_zeros,
        extension,
        extension_quoted,
        extension_escape,
        size_lf,
        data,
        data_cr,
        data_lf,
        trailer_start,
        trailer_name,
        trailer_value,
        trailer_lf,
        last_lf,
        end,
    };
    bool take_framing(char c) noexcept;
    bool take_trailer(char c) noexcept;
    bool end_trailer_line();

    // Per body: extensions of all chunks together, and the trailer section.
    static constexpr std::size_t extension_bytes_max = 4096;
    static constexpr std::size_t trailer_bytes_max = 8192;
    static constexpr std::size_t trailer_fields_max = 64;

    place where_ = place::size_first;
    bool drop_forbidden_ = false;
    std::uint8_t digits_ = 0;
    std::uint8_t zeros_ = 0;
    std::uint64_t left_ = 0;
    std::size_t extension_bytes_ = 0;
    std::size_t trailer_bytes_ = 0;
    std::size_t trailer_fields_ = 0;
    std::size_t name_end_ = 0;
    std::string line_;
    std::string trailers_;
};

}  // namespace latchkey::gateway
