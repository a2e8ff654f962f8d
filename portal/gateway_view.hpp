#pragma once
// What the admin side may know of the gateway: plain figures, filled by whoever owns both. Values; any thread.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace latchkey::portal {

struct figure {
    std::string name;     // "requests_total": without the prefix latchkey_
    std::string help;     // one sentence without line breaks
    std::string labels;   // `class="2xx"`, or empty. Figures of one name stand next to each other
    bool counter = true;  // false: a gauge
    double value = 0;
};

struct gateway_state {
    bool ready = false;     // every worker accepts
    bool draining = false;  // SIGTERM came
    std::string version;
    std::int64_t started_ms = 0;  // wall clock
    unsigned workers = 0;
    std::vector<std::string> listen;      // "127.0.0.1:8080", with the ports really bound
    std::vector<std::string> tls_listen;  // likewise, where TLS is spoken
    std::string data_dir;
    std::string power_cut_cost;   // one sentence: what a power cut can cost
    std::uint64_t recovered = 0;  // usage records taken over from an earlier process at start
    std::vector<figure> figures;
};

// Called from any thread of the admin server, by several at once; must not block.
using gateway_view = std::function<gateway_state()>;

// Starts a successor and returns its process id when it serves; `busy` at once where a reload is under way already.
using reload_call = std::function<result<std::int64_t>()>;
// Brings the records that another process still holds into usage.db.
using flush_call = std::function<result<void>()>;

}  // namespace latchkey::portal
