// uffda's Userfault over memory of an engine, whose source is zeroes: what is not resolved by the monitor reads as in
// the kernel.
#include <algorithm>

#include "conformance/world.h"

namespace uffda::conformance {
namespace {

constexpr std::size_t kBatch = 32;

class UffdaWorld final : public World {
 public:
  UffdaWorld(const Kind& kind, Memory memory, std::optional<Memory> second, Userfault monitor)
      : World(kind.unit), memory_(std::move(memory)), second_(std::move(second)), monitor_(std::move(monitor)) {
    base_ = memory_.writable_bytes().data();
    if (second_) {
      other_ = second_->writable_bytes().data();
      copies_ = kind.access == Access::private_;
    }
    // Once watched, nothing is read ahead.
    (void)monitor_.register_range(page(0), unit() * kPages, UffdMode::missing);
    (void)monitor_.unregister_range(page(0), unit() * kPages);
  }

  Registered register_range(Address start, ByteCount length, std::uint64_t modes) override {
    const auto ioctls = monitor_.register_range(start, length, UffdModes::from_bits(modes));
    if (!ioctls) return {.error = ioctls.error().sys_errno(), .ioctls = 0};
    return {.error = 0, .ioctls = ioctls->bits()};
  }
  int unregister_range(Address start, ByteCount length) override {
    const auto done = monitor_.unregister_range(start, length);
    return done ? 0 : done.error().sys_errno();
  }
  UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags) override {
    return monitor_.copy(to, from, length, flags);
  }
  UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags) override {
    return monitor_.zeropage(start, length, flags);
  }
  UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags) override {
    return monitor_.continue_(start, length, flags);
  }
  UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags) override {
    return monitor_.poison(start, length, flags);
  }
  UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags) override {
    return monitor_.move(to, from, length, flags);
  }
  UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags) override {
    return monitor_.writeprotect(start, length, flags);
  }
  UffdOutcome wake(Address start, ByteCount length) override { return monitor_.wake(start, length); }
  std::vector<uffd_msg> read() override {
    std::vector<uffd_msg> messages(kBatch);
    const auto count = monitor_.read(messages, Deadline::at({}));
    messages.resize(count ? *count : 0);
    return messages;
  }
  void settle() override {
    // Goes through the lock under which events are read and applied. Nothing is at that address.
    (void)monitor_.unregister_range({kPageSize.value}, kPageSize);
  }

 private:
  Memory memory_;
  std::optional<Memory> second_;
  Userfault monitor_;
};

Engine* engine(std::string& why) {
  static Result<Engine> engine = Engine::create({.monitors = kFeatures});
  if (engine) return &*engine;
  why = engine.error().message();
  return nullptr;
}

}  // namespace

std::unique_ptr<World> uffda_world(const Kind& kind, std::string& why) {
  Engine* const made = engine(why);
  if (made == nullptr) return nullptr;
  auto memory =
      made->map("zero:" + std::to_string((kind.unit * kPages).value), {.access = kind.access, .type = kind.type});
  auto monitor = Userfault::open(*made, kFeatures);
  if (!memory || !monitor) {
    why = memory ? monitor.error().message() : memory.error().message();
    return nullptr;
  }
  std::optional<Memory> second;
  if (std::string_view(kind.type) != "anon") {
    auto again = memory->map_again(Access::shared);
    if (again) second.emplace(std::move(*again));
  }
  return std::make_unique<UffdaWorld>(kind, std::move(*memory), std::move(second), std::move(*monitor));
}

}  // namespace uffda::conformance
