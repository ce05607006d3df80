// An engine, an object and a mapping of it, through the public library.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "common/bench.h"
#include "uffda/uffda.h"

namespace bench {

/// A source of bytes that cost nothing but a store: what is measured is everything else.
class FillSource final : public uffda::PageSource {
 public:
  explicit FillSource(std::size_t bytes) { opened("fill", {.size = {bytes}, .immediate = true}); }

 private:
  void do_fetch(uffda::FetchTicket ticket) noexcept override {
    const uffda::ByteCount length = ticket.range().length;
    std::memset(ticket.buffer().data(), 0x5A, length.value);
    std::move(ticket).complete(length);
  }
  uffda::Result<void> do_fetch_now(uffda::ByteOffset, std::span<std::byte> buffer) noexcept override {
    std::memset(buffer.data(), 0x5A, buffer.size());
    return {};
  }
};

inline const char* name_of(uffda::HandlerPolicy policy) {
  switch (policy) {
    case uffda::HandlerPolicy::per_cpu:
      return "per_cpu";
    case uffda::HandlerPolicy::one:
      return "one";
    case uffda::HandlerPolicy::spinning:
      return "spinning";
    case uffda::HandlerPolicy::in_thread:
      return "in_thread";
  }
  return "?";
}

template <typename T>
T must(uffda::Result<T> result) {
  if (!result) die(result.error().message());
  return std::move(*result);
}

struct UffdaMemory {
  uffda::Engine engine;
  uffda::Memory memory;

  /// With threads where this process may run now.
  static UffdaMemory of(std::unique_ptr<uffda::PageSource> source, uffda::HandlerPolicy policy,
                        const std::string& type = "shmem") {
    uffda::Engine engine =
        must(uffda::Engine::create({.handlers = policy, .kernel_faults = uffda::KernelFaults::optional}));
    uffda::Memory memory = must(engine.map(std::move(source), {.type = type}));
    return {.engine = std::move(engine), .memory = std::move(memory)};
  }
  static UffdaMemory cached(std::size_t bytes, uffda::HandlerPolicy policy, const std::string& type = "shmem") {
    UffdaMemory made = of(std::make_unique<FillSource>(bytes), policy, type);
    const auto populated =
        made.memory.populate({.start = {0}, .length = {bytes}}, uffda::Deadline::after(std::chrono::minutes(2)));
    if (!populated) die(populated.error().message());
    return made;
  }

  /// The next touch of any page faults; the page cache stays.
  void unmap_pages() const {
    auto* const start = const_cast<std::byte*>(memory.bytes().data());
    check(::madvise(start, memory.bytes().size(), MADV_DONTNEED) == 0, "MADV_DONTNEED");
  }
};

}  // namespace bench
