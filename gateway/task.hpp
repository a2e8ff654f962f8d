#pragma once
// Coroutines of a worker: `task<T>` is awaited by exactly one other coroutine, which it resumes by symmetric transfer; `detached`
// runs by itself and frees itself at its end. Frames come from frame_pool. One thread only: a task lives and dies on its worker.
//
// Asio's own awaitable<> carries an executor, a cancellation slot and a thread object through every frame, and allocates its
// operations; here the awaited object lies in the awaiting frame and the operation in the socket, so that nothing is allocated.

#include <coroutine>
#include <exception>
#include <utility>

#include "gateway/frame_pool.hpp"

namespace latchkey::gateway {

namespace detail {

struct pooled_frame {
    static void* operator new(std::size_t bytes) { return frame_pool::allocate(bytes); }
    static void operator delete(void* memory, std::size_t bytes) noexcept { frame_pool::release(memory, bytes); }
};

struct task_promise_base : pooled_frame {
    std::coroutine_handle<> awaiting;
    std::exception_ptr failure;

    std::suspend_always initial_suspend() noexcept { return {}; }
    struct final_awaiter {
        bool await_ready() noexcept { return false; }
        template <class Promise>
        std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) noexcept {
            return self.promise().awaiting;
        }
        void await_resume() noexcept {}
    };
    final_awaiter final_suspend() noexcept { return {}; }
    void unhandled_exception() noexcept { failure = std::current_exception(); }
};

}  // namespace detail

template <class T>
class [[nodiscard]] task {
  public:
    struct promise_type : detail::task_promise_base {
        T value{};
        task get_return_object() noexcept { return task(std::coroutine_handle<promise_type>::from_promise(*this)); }
        void return_value(T v) noexcept { value = v; }
    };

    task(task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
    task& operator=(task&&) = delete;
    ~task() {
        if (handle_) handle_.destroy();
    }

    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) noexcept {
        handle_.promise().awaiting = awaiting;
        return handle_;
    }
    T await_resume() {
        if (handle_.promise().failure) std::rethrow_exception(handle_.promise().failure);
        return handle_.promise().value;
    }

  private:
    explicit task(std::coroutine_handle<promise_type> h) noexcept : handle_(h) {}
    std::coroutine_handle<promise_type> handle_;
};

// Starts at once, on the caller's stack, until its first suspension. An exception that leaves it ends the program: catch inside.
struct detached {
    struct promise_type : detail::pooled_frame {
        detached get_return_object() noexcept { return {}; }
        std::suspend_never initial_suspend() noexcept { return {}; }
        std::suspend_never final_suspend() noexcept { return {}; }
        void return_void() noexcept {}
        [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
    };
};

// One coroutine waits until another says done; one-shot, reset by hand. Both on the same thread.
class event {
  public:
    void set() noexcept {
        set_ = true;
        if (auto const h = std::exchange(waiting_, {})) h.resume();
    }
    void reset() noexcept { set_ = false; }
    bool is_set() const noexcept { return set_; }

    bool await_ready() const noexcept { return set_; }
    void await_suspend(std::coroutine_handle<> h) noexcept { waiting_ = h; }
    void await_resume() const noexcept {}

  private:
    bool set_ = false;
    std::coroutine_handle<> waiting_;
};

}  // namespace latchkey::gateway
