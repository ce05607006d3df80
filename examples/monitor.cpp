// Userfaultfd over a file on a disk, which the kernel's own userfaultfd refuses: a monitor decides, page by page, what
// the reader of a mapped file sees. Here it hides every second page of the file behind dots.
//
//   monitor file:/usr/share/common-licenses/GPL-3
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <span>
#include <thread>

#include "uffda/userfault.h"

namespace {

int fail(const uffda::Error& error) {
  std::fprintf(stderr, "monitor: %s\n", error.message().c_str());
  return 1;
}

/// Answers faults until there have been none for a second: the loop that a monitor of the kernel's userfaultfd has.
void serve(uffda::Userfault& monitor, int& served) {
  std::array<std::byte, uffda::kPageSize.value> dots{};
  dots.fill(std::byte{'.'});
  std::array<uffd_msg, 16> messages{};
  while (true) {
    const auto count = monitor.read(messages, uffda::Deadline::after(std::chrono::seconds(1)));
    if (!count || *count == 0) return;
    for (const uffd_msg& message : std::span(messages).first(*count)) {
      const uffda::Address page{message.arg.pagefault.address};
      served += monitor.copy(page, dots.data(), uffda::kPageSize, {}).error == 0 ? 1 : 0;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: monitor URI\n");
    return 2;
  }
  // An engine that monitors may watch; and memory of it, as for everybody.
  auto engine = uffda::Engine::create({.monitors = uffda::UffdFeatures{}});
  if (!engine) return fail(engine.error());
  const auto memory = engine->map(argv[1]);
  if (!memory) return fail(memory.error());
  auto monitor = uffda::Userfault::open(*engine, {});
  if (!monitor) return fail(monitor.error());

  // Absent pages with an odd number are the monitor's; the others stay the file's.
  const std::span<const std::byte> bytes = memory->bytes();
  const uffda::Address start{reinterpret_cast<std::uintptr_t>(bytes.data())};
  int pages = 0;
  for (std::uint64_t at = uffda::kPageSize.value; at < bytes.size(); at += 2 * uffda::kPageSize.value, ++pages) {
    const auto registered =
        monitor->register_range(start + uffda::ByteCount{at}, uffda::kPageSize, uffda::UffdMode::missing);
    if (!registered) return fail(registered.error());
  }
  int served = 0;
  std::thread server([&] { serve(*monitor, served); });
  const auto hidden = std::ranges::count(bytes, std::byte{'.'});
  server.join();
  std::printf("%d of %d hidden pages were served, %lld dots were read\n", served, pages,
              static_cast<long long>(hidden));
  return served == pages ? 0 : 1;
}
