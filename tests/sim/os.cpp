// src/os and the log for the simulated build: what the core asks of Linux goes to the simulated kernel.
#include "base/log.h"
#include "os/memory.h"
#include "os/userfault.h"
#include "sim/kernel.h"

#include <sys/mman.h>

#include <cerrno>

namespace uffda {

bool log_enabled(LogLevel) noexcept { return sim::tracing(); }
void log_line(LogLevel, std::string_view text) noexcept { sim::trace("says: {}", text); }
void assertion_failed(const char* expression, const char* file, int line) noexcept {
  sim::violation(fmt::format("assertion failed: {} at {}:{}", expression, file, line));
}

namespace os {

using sim::Kernel;

Result<UniqueFd> create_memfd(const std::string& name, ByteCount size) {
  return UniqueFd(Kernel::running().create_file(name, size)->fd);
}

Result<UniqueFd> reopen_read_only(int fd) { return UniqueFd(fd); }
Result<UniqueFd> reopen_writable(int fd) { return UniqueFd(fd); }

Result<void> write_at(int fd, ByteOffset offset, std::span<const std::byte> bytes) {
  const int error = Kernel::running().write(*Kernel::running().file(fd), offset.value, bytes);
  if (error != 0) return fail(Errc::no_memory, "writing to the page cache", error);
  return {};
}

Result<void> read_at(int fd, ByteOffset offset, std::span<std::byte> bytes) {
  Kernel::running().read(*Kernel::running().file(fd), offset.value, bytes);
  return {};
}

Result<void> punch_hole(int fd, ByteRange range) {
  const std::uint64_t page = kPageSize.value;
  Kernel::running().punch(*Kernel::running().file(fd), align_up(range.start.value, page) / page,
                          range.end().value / page);
  return {};
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

/// The states of folios, which a successor finds again: every mapping of a file shows the same memory.
static Result<MappedMemory> map_file(sim::File& file, ByteCount length) {
  if (!file.memory) {
    void* first =
        ::mmap(nullptr, length.value, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (first == MAP_FAILED) return fail_errno(ENOMEM, "mapping memory");
    file.memory = std::shared_ptr<void>(first, [length](void* memory) { ::munmap(memory, length.value); });
  }
  void* again = ::mremap(file.memory.get(), 0, length.value, MREMAP_MAYMOVE);
  if (again == MAP_FAILED) return fail_errno(ENOMEM, "mapping memory");
  return MappedMemory(static_cast<std::byte*>(again), length.value);
}

Result<MappedMemory> map_memory(ByteCount length, int, int, int fd, ByteOffset) {
  if (fd >= 0) return map_file(*Kernel::running().file(fd), length);
  // The core's own memory: buffers. Never resident before it is used, for there are thousands of runs.
  void* data =
      ::mmap(nullptr, length.value, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return fail_errno(ENOMEM, "mapping memory");
  return MappedMemory(static_cast<std::byte*>(data), length.value);
}

Result<void> populate_memory(std::span<std::byte>) { return {}; }

ByteCount memory_size(int fd) { return Kernel::running().file(fd)->size; }

std::optional<ByteOffset> next_data(int fd, ByteOffset from) {
  return from < ByteOffset{memory_size(fd).value} ? std::optional(from) : std::nullopt;
}

bool has_page(int fd, ByteOffset offset) {
  return Kernel::running().file(fd)->cache.contains(offset.value / kPageSize.value);
}

PageEntry page_entry(Address page) {
  const auto process = Kernel::running().process_at(page.value, sim::kPage);
  if (!process) return {};
  const sim::Pte entry = process->pte(page.value);
  return {.present = !entry.vacant(), .write_protected = entry.protected_};
}

bool poison_marker(Address page) {
  const auto process = Kernel::running().process_at(page.value, sim::kPage);
  return process && process->pte(page.value).kind == sim::Pte::Kind::poison;
}

bool any_mapped(Address start, ByteCount length) {
  return length.value != 0 && Kernel::running().process_at(start.value, length.value) != nullptr;
}

/// What a monitor copies from is its own memory, which is real.
ByteCount copy_readable(std::span<std::byte> to, Address from) {
  std::memcpy(to.data(), reinterpret_cast<const void*>(from.value), to.size());
  return {to.size()};
}

Result<WrittenScan> scan_written(Address start, Address end, std::span<page_region> found, bool rearm) {
  // As many pages as there may be regions: the rest is another scan's.
  const Address stop = std::min(end, start + ByteCount{found.size() * sim::kPage});
  std::vector<std::uint64_t> pages;
  const auto process = Kernel::running().process_at(start.value, (stop - start).value);
  const int error = process ? process->context()->scan_written(start, stop - start, rearm, pages) : EPERM;
  if (error != 0) return fail(Errc::permission_denied, "scanning for written pages", error);
  for (std::size_t i = 0; i < pages.size(); ++i) found[i] = {.start = pages[i], .end = pages[i] + sim::kPage};
  return WrittenScan{.regions = pages.size(), .end = stop};
}

ByteCount physical_memory() { return 1_GiB; }

Result<std::unique_ptr<Userfault>> adopt_userfault(UniqueFd fd, std::uint64_t) {
  auto context = Kernel::running().context(fd.release());
  if (!context) return fail(Errc::invalid_argument, "the descriptor is not a userfaultfd");
  return Kernel::running().wrap(std::move(context));
}

void wake_everything(Userfault& userfault) {
  constexpr Address kLowest{kPageSize.value};
  constexpr Address kEnd{0x7fff'ffff'f000};
  userfault.wake(kLowest, kEnd - kLowest);
}

}  // namespace os
}  // namespace uffda
