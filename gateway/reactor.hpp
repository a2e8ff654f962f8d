#pragma once
// Asio's reactor, and steps for what one look at the kernel has found. One thread.
//
// Each system call pushes the program's code out of the processor's first cache, so what is done between two of them runs cold:
// read, decide, send, one message after the other, costs more than its instructions. So where many descriptors are ready, all
// their messages are read first. Then all answers are decided, then sent; then all requests, which find the upstream
// connections that the answers have set free. And all are read, or sent, by one system call (call_batch.hpp). Where few are
// ready, each goes on at once: the upstream works while the next is read, and its answer is there before the worker would go to
// sleep.
//
// Where more is ready than a look shows, the kernel shows it in the order in which it became ready: the answer to a request
// behind the requests of all other clients. All would be read before one is served, and what was read would have left the caches
// when its turn comes. So then requests are put off, unread, and some are taken on after each look, behind the answers; few
// while those before them find no upstream connection.
//
// A message that waits for its step is like any operation on its way through Asio's queue: pending to whoever asks, past being
// cancelled. Whatever else the worker does between two looks at the kernel (a handshake, a long message, a write that goes on, an
// accept, a timer) serves first who waits.

#include <array>
#include <boost/asio/detail/epoll_reactor.hpp>
#include <boost/asio/detail/scheduler.hpp>
#include <boost/intrusive/slist.hpp>
#include <coroutine>
#include <cstddef>
#include <cstdint>

#include "base/clock.hpp"
#include "gateway/call_batch.hpp"
#include "gateway/net.hpp"
#include "gateway/tally.hpp"

namespace latchkey::gateway {

namespace intrusive = boost::intrusive;

class reactor final : public asio::detail::epoll_reactor {
  public:
    // That of `io`: to be asked for before anything else of `io` is used, for it takes the place of Asio's own.
    static reactor& of(io_context& io);

    // From so many ready descriptors on they are served in steps.
    static constexpr std::size_t many = 8;

    enum class message : std::uint8_t { answer, request };

    // As register_descriptor(), but that its events also say when the peer will send nothing more (EPOLLRDHUP). Those of who
    // sends requests may be put off.
    int add(int descriptor, per_descriptor_data&, message comes);
    // For a read that brought less than it had room for: whether an event will tell of what comes behind it, an end too. Not
    // where the event of this descriptor that is being served told of an end already; nor where none is being served, for then
    // it is not known what earlier ones told.
    bool tells_of_more(per_descriptor_data d) const noexcept { return d == found_ && !found_ended_; }

    // A wait for readability whose read may be made together with others', before its turn.
    struct reading : asio::detail::reactor_op {
        // Queues that read, or does not; perform() finds the result.
        using function = void (*)(reading&, call_batch&) noexcept;
        reading(perform_func_type performs, func_type completes, function f)
            : reactor_op({}, performs, completes), queue_read(f) {
            cancellation_key_ = this;  // by which it is known
        }
        function queue_read;
    };

    // What waits for its step.
    struct waiting : intrusive::slist_base_hook<> {
        using function = void (*)(waiting&) noexcept;
        explicit waiting(function f) : go_on(f) {}
        function go_on;  // may free it
    };

    // Whether a message that is read now is to wait for the others, by later().
    bool gathering() const noexcept { return gathering_; }
    void later(message, waiting&) noexcept;
    // So many wait at most, for each holds a buffer: then they are served. 0 or 1: none waits for another.
    void wait_at_most(std::size_t n) noexcept { waiting_max_ = n; }

    // steady_ns(), as it was a few messages ago where several go on together: what a step does for each is not worth a look at
    // the clock. Not for what may have taken long itself.
    std::int64_t now() const noexcept { return step_ns_ != 0 ? step_ns_ : steady_ns(); }
    static constexpr unsigned clock_shared_by = 8;

    // The parts of a step: each is done for all its messages before the next begins. To look at a request is to ask for memory
    // that its decision will need.
    enum class part : std::uint8_t { look, decide, send };

    // A write that may be made together with those of others whose turn it is: first all begin, then all are made, then all end,
    // and nothing else is done in between.
    class outgoing {
      public:
        virtual bool begin(call_batch&) noexcept = 0;  // queues it; false: it is to be made alone, later
        virtual void end() noexcept = 0;

      protected:
        ~outgoing() = default;
    };

    // To be awaited before one begins: goes on when all others of this step are as far. Whether it waited for them. Before
    // part::send, `out` may have been made by then.
    class [[nodiscard]] turn : waiting {
      public:
        turn(reactor& r, part next, outgoing* out = nullptr) : waiting(&resume), reactor_(r), next_(next), out_(out) {}
        bool await_ready() const noexcept { return reactor_.part_ >= next_; }
        void await_suspend(std::coroutine_handle<> h) noexcept {
            awaiting_ = h;
            reactor_.turns_[static_cast<std::size_t>(next_)].push_back(*this);
        }
        bool await_resume() const noexcept { return static_cast<bool>(awaiting_); }

      private:
        friend reactor;
        static void resume(waiting&) noexcept;
        reactor& reactor_;
        part next_;
        bool begun_ = false;
        outgoing* out_;
        std::coroutine_handle<> awaiting_;
    };

    // Goes on with `w` when what the loop's look at the kernel found has been served, the one that is under way or else the next,
    // for which the loop does not sleep.
    void after_look(waiting& w) noexcept;
    void forget(waiting& w) noexcept;  // who is to go on after a look, or is not
    // So many of those put off are taken on after a look, less those that are held up; but some always, for those held up may be
    // of one api, or of clients that send many at once.
    static constexpr std::size_t requests_a_look = 64;
    static constexpr std::size_t requests_a_look_min = 8;
    // Whether something was found of it that has not been served yet.
    bool has_put_off(per_descriptor_data d) const noexcept { return put_off_.has(d); }
    // A request that was read can go no further before answers have come; or now it can.
    void held_up() noexcept { ++held_up_; }
    void goes_on() noexcept { --held_up_; }
    // How many events of those who send requests were put off to a later look. Any thread.
    std::uint64_t put_off_total() const noexcept { return put_off_total_.get(); }
    // How often it has looked.
    std::uint64_t looks() const noexcept { return looks_; }

    // By which those of a step are read and sent.
    call_batch& calls() noexcept { return calls_; }
    call_batch const& calls() const noexcept { return calls_; }

    // Serves what waits for its step, now.
    void serve() noexcept;

    // For Asio's loop: one look at the kernel. What was found is done before it returns, but for what is put off; `found` gets
    // what that leaves to be done.
    void run(long wait_us, asio::detail::op_queue<asio::detail::operation>& found) override;

  private:
    using list = intrusive::slist<waiting, intrusive::cache_last<true>, intrusive::constant_time_size<false>>;
    using operation = asio::detail::operation;
    class run_now;

    // Descriptors, each with what was found of it. Asio takes one for enqueued by its link, and adds what it finds of it
    // meanwhile; so the last one's link is not null, but `end_`.
    class descriptors {
      public:
        bool empty() const noexcept { return !first_; }
        std::size_t size() const noexcept { return size_; }
        bool has(per_descriptor_data) const noexcept;
        void push(operation*) noexcept;
        operation* pop() noexcept;
        void remove(per_descriptor_data) noexcept;

      private:
        struct mark : operation {
            mark() : scheduler_operation(nullptr) {}
        };
        mark mark_;
        operation* const end_ = &mark_;
        operation* first_ = nullptr;
        operation* last_ = nullptr;
        std::size_t size_ = 0;
    };
    void put_off(asio::detail::op_queue<operation>& found) noexcept;

    explicit reactor(io_context& io);
    void step(list& messages, part first) noexcept;
    void go_on(list& all, bool several) noexcept;
    void send_together(list& turns) noexcept;

    asio::detail::scheduler& scheduler_;
    list answers_;
    list requests_;
    std::array<list, 3> turns_;  // [part]: who waits for it; turns
    call_batch calls_;
    list after_look_;
    descriptors put_off_;  // closed ones, too
    tally put_off_total_;
    std::size_t held_up_ = 0;
    std::uint64_t looks_ = 0;
    std::size_t waiting_ = 0;  // in answers_ and requests_
    std::size_t waiting_max_ = 128;
    void const* found_ = nullptr;  // whose event is being served
    bool found_ended_ = false;     // and whether it told of an end
    std::int64_t step_ns_ = 0;     // the clock, as last read for a step; 0: no step of several runs
    bool gathering_ = false;
    part part_ = part::send;  // of the step that runs; send, too, where none does: then nobody waits
};

}  // namespace latchkey::gateway
