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
    assert(!deciding_);
    if (std::exchange(waiting_, 0) == 0) return;
    step(answers_);
    step(requests_);
}

void reactor::step(list& messages) noexcept {
    deciding_ = !messages.empty() && std::next(messages.begin()) != messages.end();
    go_on(messages);
    deciding_ = false;
    go_on(sends_);
}

void reactor::go_on(list& all) noexcept {
    while (!all.empty()) {
        waiting& w = all.front();
        all.pop_front();
        w.go_on(w);
    }
}

void reactor::send_turn::resume(waiting& w) noexcept { static_cast<send_turn&>(w).sender_.resume(); }

}  // namespace latchkey::gateway
