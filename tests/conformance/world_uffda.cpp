// uffda's Userfault over memory of an engine, whose source is zeroes: what is not resolved by the monitor reads as in
// the kernel.
#include <algorithm>
#include <map>

#include "conformance/real_world.h"
#include "conformance/script.h"

namespace uffda::conformance {
namespace {

constexpr std::size_t kBatch = 32;

class UffdaWorld final : public RealWorld {
 public:
  UffdaWorld(const Kind& kind, Memory memory, std::optional<Memory> second, Userfault monitor)
      : RealWorld(kind), memory_(std::move(memory)), second_(std::move(second)), monitor_(std::move(monitor)) {
    monitors(memory_.writable_bytes());
    if (second_) {
      other_ = address_of(second_->writable_bytes());
      copies_ = kind.access == Access::private_;
    }
    // Once watched, nothing is read ahead.
    (void)monitor_.register_range(page(0), unit() * kPages, UffdMode::wp);
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
  Written written(Address start, ByteCount length, Rearm rearm) override {
    Written result{.error = 0, .ranges = std::vector<WrittenRange>(kBatch)};
    const auto pages = monitor_.written(start, length, result.ranges, rearm);
    if (!pages) result.error = pages.error().sys_errno();
    result.ranges.resize(pages ? pages->ranges : 0);
    return result;
  }
  [[nodiscard]] int descriptor() const override { return memory_.descriptor(); }
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

Engine* engine(UffdFeatures features, std::string& why) {
  RealWorld::install_handlers();  // the engine's own hands on what is not for it
  static std::map<std::uint64_t, Result<Engine>> engines;
  const HandlerPolicy handlers = features.has(UffdFeature::sigbus) ? HandlerPolicy::in_thread : HandlerPolicy::per_cpu;
  auto known = engines.find(features.bits());
  if (known == engines.end())
    known = engines.emplace(features.bits(), Engine::create({.handlers = handlers, .monitors = features})).first;
  if (known->second) return &*known->second;
  why = known->second.error().message();
  return nullptr;
}

}  // namespace

std::unique_ptr<World> uffda_world(const Kind& kind, std::string& why) {
  Engine* const made = engine(kind.features, why);
  if (made == nullptr) return nullptr;
  const bool faults = std::string_view(kind.type) != "guest_memfd";
  auto memory =
      made->map("zero:" + std::to_string((kind.unit * kPages).value),
                {.access = kind.access, .type = kind.type, .populate = faults ? Populate::on_touch : Populate::first});
  auto monitor = Userfault::open(*made, kind.features);
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

std::vector<std::string> run_uffda(const Script& script, const Kind& kind) {
  std::string why;
  return run(script, *uffda_world(kind, why));
}

}  // namespace uffda::conformance
