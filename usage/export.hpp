#pragma once
// CSV of usage records: RFC 4180, CRLF, header row, constant memory. Columns: `time,request_id,application,application_id,
// key_id,api,method,host,path,status,outcome,request_bytes,response_bytes,duration_ms,upstream_ms,client_ip`. Cells that begin
// with = + - @ tab or CR get a leading ' (OWASP CSV injection). Always UTF-8: bytes that are not are written as %FF. Any thread;
// one journal per call.

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "usage/journal.hpp"

namespace latchkey::usage {

struct filter {
    std::int64_t from_ms = std::numeric_limits<std::int64_t>::min();  // included
    std::int64_t to_ms = std::numeric_limits<std::int64_t>::max();    // excluded
    std::string key_id;                                               // empty: every key
    std::string application_id;                                       // empty: every application
};

inline constexpr std::string_view csv_columns =
    "time,request_id,application,application_id,key_id,api,method,host,path,status,outcome,request_bytes,response_bytes,"
    "duration_ms,upstream_ms,client_ip";

// Calls `sink` with pieces of about 64 KiB; `sink` false stops (the reader went away). Returns the number of records written.
// A damaged block is named in a warning of the log, skipped, and makes the result `corrupt` at the end; `io`: it was cut short.
result<std::uint64_t> export_csv(journal&, filter const&, std::function<bool(std::string_view piece)> const& sink);

// Whether a record fits. Reads until one does; damaged blocks are passed over.
result<bool> has_record(journal&, filter const&);

// One cell, quoted and defused as above, appended to `out`.
void append_cell(std::string& out, std::string_view text);

}  // namespace latchkey::usage
