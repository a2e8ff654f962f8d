#include "gateway/reactor.hpp"

#include <cassert>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <utility>

namespace latchkey::gateway {
namespace {

using queue = asio::detail::op_queue<asio::detail::operation>;

bool has(queue& q, std::size_t least) noexcept {
    auto* o = q.front();
    while (o && --least != 0) o = asio::detail::op_queue_access::next(o);
    return o != nullptr;
}

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

void reactor::run(long wait_us, queue& found) {
    epoll_reactor::run(wait_us, found);
    if (gathering_ || !has(found, many)) return;
    gathering_ = true;
    scheduler_.work_started();  // or the loop might end before it, for what was read is no work of Asio's any more
    found.push(&last_);
}

void reactor::last_of_turn::complete(void* scheduler, asio::detail::operation* self, error_code const&, std::size_t) {
    if (!scheduler) return;  // the loop is being destroyed
    reactor& r = static_cast<last_of_turn*>(self)->owner;
    r.gathering_ = false;
    r.serve();
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

void reactor::turn::resume(waiting& w) noexcept { static_cast<turn&>(w).awaiting_.resume(); }

}  // namespace latchkey::gateway
