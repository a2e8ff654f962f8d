#include "gateway/frame_pool.hpp"

#include <array>
#include <new>

namespace latchkey::gateway {
namespace {

constexpr std::size_t class_bytes = 128;
constexpr std::size_t class_count = 32;  // frames up to 4 KiB; larger ones go to operator new

struct node {
    node* next;
};

struct free_lists {
    std::array<node*, class_count> head{};
    std::array<std::size_t, class_count> length{};

    free_lists() = default;
    free_lists(free_lists const&) = delete;
    free_lists& operator=(free_lists const&) = delete;
    ~free_lists() { trim(0); }

    void trim(std::size_t keep) noexcept {
        for (std::size_t c = 0; c < class_count; ++c) {
            while (length[c] > keep) {
                node* const n = head[c];
                head[c] = n->next;
                --length[c];
                ::operator delete(n);
            }
        }
    }
};

thread_local free_lists lists;

constexpr std::size_t class_of(std::size_t bytes) { return (bytes + class_bytes - 1) / class_bytes - 1; }

}  // namespace

void* frame_pool::allocate(std::size_t bytes) {
    std::size_t const c = class_of(bytes);
    if (c >= class_count) return ::operator new(bytes);
    if (node* const n = lists.head[c]) {
        lists.head[c] = n->next;
        --lists.length[c];
        return n;
    }
    return ::operator new((c + 1) * class_bytes);
}

void frame_pool::release(void* memory, std::size_t bytes) noexcept {
    std::size_t const c = class_of(bytes);
    if (c >= class_count) {
        ::operator delete(memory);
        return;
    }
    auto* const n = static_cast<node*>(memory);
    n->next = lists.head[c];
    lists.head[c] = n;
    ++lists.length[c];
}

void frame_pool::trim(std::size_t keep) noexcept { lists.trim(keep); }

}  // namespace latchkey::gateway
