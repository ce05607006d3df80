#include "uffda/userfault.h"

#include "api/engine.h"
#include "mm/uffd_monitor.h"

namespace uffda {

// Members are destroyed from the last to the first: a monitor goes before the engine whose memory it watches.
struct Userfault::Impl {
  std::shared_ptr<Engine::Impl> engine;
  UffdMonitor monitor;
};

Userfault::Userfault(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Userfault::Userfault(Userfault&&) noexcept = default;
Userfault& Userfault::operator=(Userfault&&) noexcept = default;
Userfault::~Userfault() = default;

Result<Userfault> Userfault::open(const Engine& engine, UffdFeatures features) {
  if (!engine.impl_->monitors || !engine.impl_->monitors->has_all(features)) {
    return uffda::fail(Errc::unsupported,
                       "the engine was made without one of these features: name them in EngineOptions::monitors");
  }
  // Set for the one userfaultfd of the engine: a monitor without them would wait for messages that never come.
  constexpr UffdFeatures kOfTheEngine{UffdFeature::sigbus, UffdFeature::wp_async};
  if (!features.has_all(*engine.impl_->monitors & kOfTheEngine)) {
    return uffda::fail(Errc::unsupported,
                       "the engine was made with sigbus or wp_async among EngineOptions::monitors, which hold for all "
                       "its memory: ask for them, or make another engine");
  }
  auto context = UFFDA_TRY(UffdContext::create(features));
  // NOLINTNEXTLINE(modernize-make-unique): an aggregate
  return Userfault(std::unique_ptr<Impl>(new Impl{engine.impl_, {engine.impl_->space, std::move(context)}}));
}

int Userfault::fd() const { return impl_->monitor.context().fd(); }

Result<std::size_t> Userfault::read(std::span<uffd_msg> messages, Deadline deadline) {
  return impl_->monitor.context().read(messages, deadline);
}

Result<UffdIoctls> Userfault::register_range(Address start, ByteCount length, UffdModes modes) {
  return impl_->monitor.register_range(start, length, modes);
}

Result<void> Userfault::unregister_range(Address start, ByteCount length) {
  return impl_->monitor.unregister_range(start, length);
}

UffdOutcome Userfault::copy(Address to, const void* from, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.copy(to, {reinterpret_cast<std::uintptr_t>(from)}, length, flags);
}

UffdOutcome Userfault::zeropage(Address start, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.zeropage(start, length, flags);
}

UffdOutcome Userfault::continue_(Address start, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.continue_(start, length, flags);
}

UffdOutcome Userfault::poison(Address start, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.poison(start, length, flags);
}

UffdOutcome Userfault::move(Address to, Address from, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.move(to, from, length, flags);
}

UffdOutcome Userfault::writeprotect(Address start, ByteCount length, ResolveFlags flags) {
  return impl_->monitor.writeprotect(start, length, flags);
}

Result<WrittenPages> Userfault::written(Address start, ByteCount length, std::span<WrittenRange> found, Rearm rearm) {
  return impl_->monitor.written(start, length, found, rearm);
}

UffdOutcome Userfault::wake(Address start, ByteCount length) { return impl_->monitor.wake(start, length); }

}  // namespace uffda
