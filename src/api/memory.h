// What a Memory is made of.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "api/engine.h"
#include "mm/memory_object.h"
#include "os/memory.h"
#include "uffda/background_fill.h"
#include "uffda/uffda.h"

namespace uffda {

struct WorkingSet;

struct Memory::Impl {  // NOLINT(cppcoreguidelines-special-member-functions): an aggregate that is never copied
  std::shared_ptr<Engine::Impl> engine;
  std::shared_ptr<MemoryObject> object;
  os::MappedMemory mapping;
  Access access;
  std::atomic<std::uint64_t> failures_seen{0};  // by sync()

  ~Impl() {
    // First nobody resolves faults there any more, then it is unmapped.
    if (!mapping.bytes().empty()) engine->space->detach(mapping.address(), {mapping.bytes().size()});
  }

  static Result<std::unique_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine,
                                              std::shared_ptr<MemoryObject> object, Access access);
  static Result<void> check_access(const Engine::Impl& engine, const MemoryObject& object, Access access);
  [[nodiscard]] Result<BackgroundFill> prefetch(std::span<const WorkingSet> sets, std::string_view from) const;
};

}  // namespace uffda
