#pragma once
// The upstream side of one worker: for each target of an api its address, its health as this worker has seen it, and a pool of
// idle connections. One thread.

#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "conf/settings.hpp"
#include "gateway/buffer_pool.hpp"
#include "gateway/stream.hpp"
#include "gateway/task.hpp"

namespace latchkey::gateway {

class target;
namespace intrusive = boost::intrusive;

// A connection to a target. Idle: it stands in its target's pool and watches for the other side's close. Leased: it belongs to
// one exchange until give_back() or discard().
class upstream_connection : public intrusive::list_base_hook<> {
  public:
    upstream_connection(reactor& r, target& to) : io(r), to_(to) {}

    stream io;
    lease in;  // bytes of the response that are in hand: [begin, end)
    std::size_t begin = 0;
    std::size_t end = 0;
    bool reused = false;     // has served a request before
    std::uint64_t sent = 0;  // bytes written on it before the current exchange

    // Whether the other side's kernel has acknowledged any byte written since `sent` (TCP_INFO, RFC 4898): if not, its program
    // cannot have seen the request, and sending it once more elsewhere is safe whatever the method.
    bool peer_has_bytes() const noexcept;

    target& to() const noexcept { return to_; }

  private:
    friend class target;
    enum class state : std::uint8_t { leased, idle, dead };
    static void on_watch(void* self) noexcept;
    target& to_;
    state state_ = state::leased;
    bool looked_at_ = false;  // the sweep has asked once since it went idle
    std::int64_t idle_since_ns_ = 0;
};

class target {
  public:
    target(reactor& r, conf::api const& a, conf::target const& t);
    ~target();  // close_all() before, and the loop run until count() == 0
    target(target const&) = delete;
    target& operator=(target const&) = delete;

    // Addresses to try, in turn. Empty: the name could not be resolved.
    void set_addresses(std::vector<tcp_endpoint> addresses);
    bool resolved() const noexcept { return !addresses_.empty(); }

    std::string_view authority() const noexcept { return authority_; }  // "host:port", as a Host field
    std::string_view base_path() const noexcept { return base_path_; }
    conf::endpoint const& where() const noexcept { return where_; }

    // The most recently used idle connection, or null.
    upstream_connection* take_idle() noexcept;
    bool at_limit() const noexcept { return connections_max_ != 0 && all_.size() >= connections_max_; }

    struct connected {
        upstream_connection* connection = nullptr;
        error_code ec;
    };
    // A new connection: each address in turn, all within the api's connect deadline.
    task<connected> connect(std::int64_t now_ns);

    // The exchange ended cleanly: framing complete both ways, nothing left over.
    void give_back(upstream_connection*, std::int64_t now_ns) noexcept;
    void discard(upstream_connection*) noexcept;

    // Passive health: after failures to connect the target is passed over for a while (1 s, doubling up to 30 s) as long as
    // others are there; one success clears it.
    bool usable(std::int64_t now_ns) const noexcept { return now_ns >= down_until_ns_; }
    std::int64_t down_until() const noexcept { return down_until_ns_; }
    // The first failure is logged, then one a minute, and the first success after it.
    void failed(std::int64_t now_ns, error_code const& why) noexcept;
    void succeeded() noexcept;

    void sweep(std::int64_t now_ns) noexcept;  // deadlines, idle time-outs, ends that were missed
    void close_idle() noexcept;
    void close_all() noexcept;
    std::size_t count() const noexcept { return all_count_; }

  private:
    friend class upstream_connection;
    void bury(upstream_connection*) noexcept;

    reactor& reactor_;
    conf::endpoint where_;
    std::string authority_;
    std::string base_path_;
    conf::upstream_deadlines deadlines_;
    std::size_t connections_max_;
    std::size_t idle_max_;
    std::vector<tcp_endpoint> addresses_;
    std::size_t next_address_ = 0;
    unsigned failures_ = 0;
    std::int64_t down_until_ns_ = 0;
    std::int64_t complained_ns_ = 0;  // 0: not since the last success
    using connection_list = intrusive::list<upstream_connection>;
    connection_list all_;                     // every living connection
    std::vector<upstream_connection*> idle_;  // newest last
    std::size_t all_count_ = 0;               // with those that only wait for their last operation
};

// The targets of one api, chosen in turn.
class target_group {
  public:
    target_group(reactor& r, conf::api const& a);
    // The next usable target that is not in `tried` (a bit per index, the first 64); where none is usable, the one that has been
    // down longest. Null: all are tried.
    target* choose(std::int64_t now_ns, std::uint64_t tried) noexcept;
    std::uint64_t bit_of(target const&) const noexcept;
    std::vector<std::unique_ptr<target>> const& targets() const noexcept { return targets_; }
    // The most that base path and authority of one target have together, in bytes.
    std::size_t lines_max() const noexcept { return lines_max_; }

  private:
    std::vector<std::unique_ptr<target>> targets_;
    std::size_t lines_max_ = 0;
    std::size_t next_ = 0;
};

}  // namespace latchkey::gateway
