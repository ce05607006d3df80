#include "modules/bounce.h"

#include <algorithm>
#include <cstdlib>

namespace uffda::modules {
namespace {

constexpr std::size_t kGuard = 64;  // bytes behind the end
constexpr std::byte kGuardByte{0xA5};

}  // namespace

Bounce::~Bounce() { std::free(memory_); }

void Bounce::hand_out(std::size_t length) {
  length_ = length;
  std::fill_n(memory_ + length, kGuard, kGuardByte);
}

bool Bounce::guard_is_whole() const {
  return std::all_of(memory_ + length_, memory_ + length_ + kGuard, [](std::byte b) { return b == kGuardByte; });
}

Result<std::shared_ptr<Bounce>> BouncePool::take(std::size_t length) {
  std::unique_ptr<Bounce> bounce;
  {
    const MutexLock lock(state_->mutex);
    const auto fits = std::ranges::find_if(state_->kept, [&](const auto& one) { return one->room_ >= length; });
    if (fits != state_->kept.end()) {
      bounce = std::move(*fits);
      state_->kept.erase(fits);
    }
  }
  if (!bounce) {
    const std::size_t room = align_up(length, kPageSize.value);
    auto* const memory =
        static_cast<std::byte*>(std::aligned_alloc(kPageSize.value, room + kPageSize.value));  // a page for the guard
    if (memory == nullptr) return fail(Errc::no_memory, "a buffer for a module");
    std::fill_n(memory, room, std::byte{0});
    bounce.reset(new Bounce(memory, room));
  }
  bounce->hand_out(length);
  return std::shared_ptr<Bounce>(bounce.release(), [pool = std::weak_ptr<State>(state_)](Bounce* returned) {
    std::unique_ptr<Bounce> owned(returned);
    const auto state = pool.lock();
    if (!state) return;
    const MutexLock lock(state->mutex);
    if (state->kept.size() < kKept) state->kept.push_back(std::move(owned));
  });
}

}  // namespace uffda::modules
