// Memory files and mappings: memfd_create, mmap, hole punching, with errors that name the limit that was met.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "os/fd.h"
#include "os/kernel_abi.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::os {

/// A memory file of `size` bytes, mode 0600 so that only this user can open it again through /proc.
Result<UniqueFd> create_memfd(const std::string& name, ByteCount size);

/// The same, of huge pages of `page` bytes; `size` is a multiple of it. Reserves none of them: mapping it does. Errors:
/// unsupported (the machine has no pages of this size), no_memory.
Result<UniqueFd> create_hugetlb_memfd(const std::string& name, ByteCount size, ByteCount page);

/// The same file, opened anew for reading only: what a client gets. (A descriptor open for writing could be mapped
/// writable.)
Result<UniqueFd> reopen_read_only(int fd);

/// The same, opened anew for reading and writing; from now on nobody changes its size.
Result<UniqueFd> reopen_writable(int fd);

/// One pwrite loop: all bytes or an error.
Result<void> write_at(int fd, ByteOffset offset, std::span<const std::byte> bytes);
/// One pread loop: all bytes or an error.
Result<void> read_at(int fd, ByteOffset offset, std::span<std::byte> bytes);

/// Frees the pages of the range and unmaps them wherever they are mapped.
Result<void> punch_hole(int fd, ByteRange range);

/// The size of a memory file; 0 of anything else.
ByteCount memory_size(int fd);
/// Where from `from` on a memory file may hold something; nothing: nowhere.
std::optional<ByteOffset> next_data(int fd, ByteOffset from);

/// Whether a memory file holds a page there, be it of zeroes.
bool has_page(int fd, ByteOffset offset);
/// Copies memory of this process, absent or invalid memory too: the bytes copied before the first that cannot be read.
ByteCount copy_readable(std::span<std::byte> to, Address from);
/// Whether anything at all is mapped in a range of this process.
bool any_mapped(Address start, ByteCount length);
/// What the page table of this process says of a page.
struct PageEntry {
  bool present = false;
  bool write_protected = false;  ///< by userfaultfd, present or not
};
/// Nothing where that cannot be known. Safe in a signal handler.
PageEntry page_entry(Address page);
/// Whether touching the page is SIGBUS because userfaultfd has poisoned it. (A page that is swapped out looks the
/// same.)
bool poison_marker(Address page);
inline bool write_protected(Address page) { return page_entry(page).write_protected; }
/// What a scan for written pages gave.
struct WrittenScan {
  std::size_t regions = 0;
  Address end;  ///< looked at up to here
};
/// Finds pages of [start, end) that were written since userfaultfd protected them, and with `rearm` protects those
/// again. Errors: EPERM (not registered for that with WP_ASYNC), unsupported.
Result<WrittenScan> scan_written(Address start, Address end, std::span<page_region> found, bool rearm);
/// Allocates the pages of a writable mapping of this process, as writing to them would, but with an error instead of a
/// SIGBUS. What is there already stays.
Result<void> populate_memory(std::span<std::byte> memory);

/// A mapping of this process, unmapped when it goes.
class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(std::byte* data, std::size_t size) : data_(data), size_(size) {}
  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  ~MappedMemory();

  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] Address address() const { return {reinterpret_cast<std::uintptr_t>(data_)}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// mmap; `fd` -1 for anonymous memory. `protection` and `flags` as mmap's.
Result<MappedMemory> map_memory(ByteCount length, int protection, int flags, int fd = -1, ByteOffset offset = {});

/// Physical memory of the machine.
ByteCount physical_memory();

}  // namespace uffda::os
