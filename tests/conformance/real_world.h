// What the worlds of real memory have in common: threads of this process that touch it, and its system calls.
#pragma once

#include "conformance/world.h"
#include "os/memory.h"

namespace uffda::conformance {

inline std::byte* pointer(Address at) { return reinterpret_cast<std::byte*>(at.value); }

class RealWorld : public World {
 public:
  Workers& workers() override;
  std::string touch(Address at, How how, std::uint8_t value) override;
  std::string change(Change what, Address at, ByteCount length) override;
  std::string remap() override;
  std::string fork() override;
  /// Makes SIGBUS and SIGSEGV outcomes of a touch. Once, and before an engine is made that wants SIGBUS, too.
  static void install_handlers();

 protected:
  explicit RealWorld(const Kind& kind);
  void monitors(std::span<std::byte> memory);
  static Address address_of(std::span<std::byte> memory) { return {reinterpret_cast<std::uintptr_t>(memory.data())}; }

 private:
  os::MappedMemory aside_memory_;
  os::MappedMemory target_memory_;
};

}  // namespace uffda::conformance
