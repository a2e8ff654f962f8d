#include "gateway/reactor.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <boost/asio/detail/scheduler_thread_info.hpp>
#include <boost/asio/detail/thread_context.hpp>
#include <cassert>
#include <cerrno>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <utility>

namespace latchkey::gateway {
namespace {

using asio::detail::epoll_reactor;
using asio::detail::op_queue_access;
using queue = asio::detail::op_queue<asio::detail::operation>;

// Among the events of descriptors that were registered with it when there is something to read. So it tells clients' from
// others'.
constexpr std::uint32_t of_client = EPOLLRDNORM;
// A look shows 128 events at most (epoll_reactor::run()), and a few are Asio's own.
constexpr std::size_t full_look = 120;

// Of a descriptor: the events that were found of it, which Asio keeps for its scheduler.
struct events : asio::detail::operation {
    static std::size_t of(asio::detail::operation const& o) noexcept { return o.*&events::task_result_; }
};

bool has(queue& q, std::size_t least) noexcept {
    auto* o = q.front();
    while (o && --least != 0) o = op_queue_access::next(o);
    return o != nullptr;
}

// Three of Asio's private members (an explicit instantiation may name them): its epoll descriptor; the events that a descriptor
// is registered for, which it uses again when it asks for more; and who waits for them.
struct epoll_descriptor {
    using type = int epoll_reactor::*;
    friend type member(epoll_descriptor);
};
struct registered_events {
    using type = std::uint32_t epoll_reactor::descriptor_state::*;
    friend type member(registered_events);
};
template <class Name, typename Name::type Member>
struct opened {
    friend typename Name::type member(Name) { return Member; }
};
template struct opened<epoll_descriptor, &epoll_reactor::epoll_fd_>;
template struct opened<registered_events, &epoll_reactor::descriptor_state::registered_events_>;
struct waiting_operations {
    using type = asio::detail::op_queue<asio::detail::reactor_op> (epoll_reactor::descriptor_state::*)[epoll_reactor::max_ops];
    friend type member(waiting_operations);
};
template struct opened<waiting_operations, &epoll_reactor::descriptor_state::op_queue_>;

}  // namespace

reactor::reactor(io_context& io) : epoll_reactor(io), scheduler_(asio::use_service<asio::detail::scheduler>(io)) {}

reactor& reactor::of(io_context& io) {
    if (!asio::has_service<epoll_reactor>(io)) {
        std::unique_ptr<reactor> made{new reactor(io)};
        asio::add_service<epoll_reactor>(io, made.get());
        static_cast<void>(made.release());
    }
    auto* const r = dynamic_cast<reactor*>(&asio::use_service<epoll_reactor>(io));
    if (!r) throw std::logic_error("this io_context has a reactor of Asio's own already");
    return *r;
}

// Does what was found as Asio's scheduler would, but without going through its loop and its lock for each: their code is cold
// after each system call. Where one of them throws, the scheduler gets the rest. (No handler here goes through an
// executor that would keep its exception for later.)
class reactor::run_now {
  public:
    run_now(reactor& r, queue& found) noexcept : reactor_(r), found_(found) {
        all_.push(found);
        r.gathering_ = has(all_, many);
    }
    ~run_now() {
        reactor_.gathering_ = false;
        reactor_.found_ = nullptr;
        reactor_.serve();
        found_.push(all_);
        // What the scheduler counts for who waits in it: each that was done ends one, and has begun one where it did not.
        auto& mine = static_cast<asio::detail::scheduler_thread_info*>(asio::detail::thread_context::top_of_thread_call_stack())
                         ->private_outstanding_work;
        for (mine -= done_; mine < 0; ++mine) reactor_.scheduler_.work_finished();
    }
    run_now(run_now const&) = delete;
    run_now& operator=(run_now const&) = delete;

    void operator()() {
        while (auto* const o = all_.front()) {
            if (ahead_ == 0 && reactor_.gathering_) read_ahead();
            all_.pop();
            ++done_;
            if (ahead_ != 0) --ahead_;
            std::size_t const found = events::of(*o);
            reactor_.found_ = o;
            reactor_.found_ended_ = (found & EPOLLRDHUP) != 0;
            o->complete(&reactor_.scheduler_, {}, found);
        }
    }

  private:
    // Reads by one call what so many of them bring as may wait for each other. An event behind it tells of what comes behind it.
    void read_ahead() noexcept {
        call_batch& calls = reactor_.calls_;
        bool const several = reactor_.waiting_max_ > 1 && calls.usable();
        // (Those that wait already hold buffers, too.)
        std::size_t const most = reactor_.waiting_max_ - std::min(reactor_.waiting_, reactor_.waiting_max_);
        for (auto* o = all_.front(); o && ahead_ < most && !calls.full(); o = op_queue_access::next(o), ++ahead_) {
            if (!several || (events::of(*o) & (EPOLLIN | EPOLLERR | EPOLLHUP)) != EPOLLIN) continue;
            auto* const d = static_cast<per_descriptor_data>(static_cast<void*>(o));
            auto* const waits = (d->*member(waiting_operations()))[read_op].front();
            if (waits && waits->cancellation_key_ == waits) {
                auto& r = static_cast<reading&>(*waits);
                r.queue_read(r, calls);
            }
        }
        if (calls.queued() != 0) calls.run();
    }

    reactor& reactor_;
    queue& found_;
    queue all_;
    std::size_t ahead_ = 0;  // so many of the first were looked at by read_ahead()
    long done_ = 0;
};

int reactor::add(int descriptor, per_descriptor_data& data, message comes) {
    if (int const e = register_descriptor(descriptor, data); e != 0) {
        cleanup_descriptor_data(data);
        data = nullptr;
        return e;
    }
    if (put_off_.has(data)) put_off_.remove(data);  // as a descriptor that was closed, whose place it takes
    std::uint32_t& events = data->*member(registered_events());
    epoll_event wanted{};
    wanted.events = events |= EPOLLRDHUP | (comes == message::request ? of_client : 0);
    wanted.data.ptr = data;
    if (::epoll_ctl(this->*member(epoll_descriptor()), EPOLL_CTL_MOD, descriptor, &wanted) == 0) return 0;
    int const e = errno;
    deregister_descriptor(descriptor, data, false);
    cleanup_descriptor_data(data);
    return e;
}

void reactor::run(long wait_us, queue& found) {
    if (looks_++ == 0) calls_.usable();  // its descriptor is opened while there are some
    epoll_reactor::run(after_look_.empty() && put_off_.empty() ? wait_us : 0, found);
    put_off(found);
    if (!found.empty()) run_now(*this, found)();
    list now;
    now.swap(after_look_);
    while (!now.empty()) {
        waiting& w = now.front();
        now.pop_front();
        w.go_on(w);
        scheduler_.work_finished();
    }
}

void reactor::put_off(queue& found) noexcept {
    if (put_off_.empty() && !has(found, full_look)) return;
    queue now;
    std::size_t const before = put_off_.size();
    while (operation* const o = found.front()) {
        found.pop();
        if ((events::of(*o) & of_client) != 0)
            put_off_.push(o);
        else
            now.push(o);
    }
    std::size_t const came = put_off_.size() - before;
    std::size_t const most = requests_a_look - std::min(held_up_, requests_a_look - requests_a_look_min);
    for (std::size_t n = 0; n < most && !put_off_.empty(); ++n) now.push(put_off_.pop());
    put_off_total_.add(std::min(came, put_off_.size()));  // those that came before were taken on first
    found.push(now);
}

void reactor::descriptors::push(operation* o) noexcept {
    op_queue_access::next(o, end_);
    if (last_)
        op_queue_access::next(last_, o);
    else
        first_ = o;
    last_ = o;
    ++size_;
}

reactor::operation* reactor::descriptors::pop() noexcept {
    operation* o = first_;
    first_ = o == last_ ? nullptr : op_queue_access::next(o);
    if (!first_) last_ = nullptr;
    op_queue_access::next(o, static_cast<operation*>(nullptr));
    --size_;
    return o;
}

bool reactor::descriptors::has(per_descriptor_data d) const noexcept {
    return !empty() && op_queue_access::next(static_cast<operation*>(static_cast<void*>(d))) != nullptr;
}

void reactor::descriptors::remove(per_descriptor_data d) noexcept {
    descriptors others;
    while (!empty())
        if (operation* const o = pop(); o != static_cast<void*>(d)) others.push(o);
    while (!others.empty()) push(others.pop());
}

void reactor::after_look(waiting& w) noexcept {
    after_look_.push_back(w);
    scheduler_.work_started();
}

void reactor::forget(waiting& w) noexcept {
    after_look_.remove_and_dispose_if([&](waiting const& other) { return &other == &w; },
                                      [&](waiting*) { scheduler_.work_finished(); });
}

void reactor::later(message kind, waiting& w) noexcept {
    (kind == message::answer ? answers_ : requests_).push_back(w);
    if (++waiting_ >= waiting_max_) serve();
}

void reactor::serve() noexcept {
    assert(part_ == part::send);
    if (std::exchange(waiting_, 0) == 0) return;
    step(answers_, part::decide);
    step(requests_, part::look);
}

void reactor::step(list& messages, part first) noexcept {
    bool const several = !messages.empty() && std::next(messages.begin()) != messages.end();
    part_ = several ? first : part::send;
    go_on(messages, several);
    for (auto p = static_cast<std::size_t>(first) + 1; p < turns_.size(); ++p) {
        part_ = static_cast<part>(p);
        if (part_ == part::send) send_together(turns_[p]);
        go_on(turns_[p], true);
    }
}

void reactor::go_on(list& all, bool several) noexcept {
    for (unsigned n = 0; !all.empty(); ++n) {
        if (several && n % clock_shared_by == 0) step_ns_ = steady_ns();
        waiting& w = all.front();
        all.pop_front();
        w.go_on(w);
    }
    step_ns_ = 0;
}

void reactor::send_together(list& turns) noexcept {
    if (turns.empty() || std::next(turns.begin()) == turns.end() || !calls_.usable()) return;
    unsigned n = 0;
    for (waiting& w : turns) {
        if (calls_.full()) break;
        if (n++ % clock_shared_by == 0) step_ns_ = steady_ns();
        auto& t = static_cast<turn&>(w);
        t.begun_ = t.out_ && t.out_->begin(calls_);
    }
    step_ns_ = 0;
    if (calls_.queued() != 0) calls_.run();
    for (waiting& w : turns)
        if (auto& t = static_cast<turn&>(w); t.begun_) t.out_->end();
}

void reactor::turn::resume(waiting& w) noexcept { static_cast<turn&>(w).awaiting_.resume(); }

}  // namespace latchkey::gateway
