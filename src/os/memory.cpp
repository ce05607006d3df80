#include "os/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <bit>
#include <cerrno>

#include "os/kernel_abi.h"

namespace uffda::os {

namespace {

Result<UniqueFd> sized_memfd(UniqueFd fd, ByteCount size) {
  if (::fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0) return fail_errno(errno, "fchmod of a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(size.value)) != 0) {
    return fail_errno(errno, fmt::format("sizing a memfd to {} bytes", size.value));
  }
  return fd;
}

}  // namespace

Result<UniqueFd> create_memfd(const std::string& name, ByteCount size) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return fail_errno(errno, "memfd_create");
  return sized_memfd(std::move(fd), size);
}

Result<UniqueFd> create_hugetlb_memfd(const std::string& name, ByteCount size, ByteCount page) {
  const auto size_bits = static_cast<unsigned>(std::countr_zero(page.value)) << MFD_HUGE_SHIFT;
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_HUGETLB | size_bits));
  if (!fd) {
    return fail(Errc::unsupported, fmt::format("this machine has no huge pages of {} MiB", page.value >> 20U), errno);
  }
  return sized_memfd(std::move(fd), size);
}

Result<UniqueFd> reopen_read_only(int fd) {
  UniqueFd copy(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!copy) return fail_errno(errno, "opening a memfd anew (is /proc mounted?)");
  return copy;
}

Result<UniqueFd> reopen_writable(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return fail_errno(errno, "sealing a memfd");
  UniqueFd copy(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDWR | O_CLOEXEC));
  if (!copy) return fail_errno(errno, "opening a memfd anew (is /proc mounted?)");
  return copy;
}

Result<void> write_at(int fd, ByteOffset offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset.value));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return fail_errno(written < 0 ? errno : EIO, "writing to the page cache");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset = offset + ByteCount{static_cast<std::uint64_t>(written)};
  }
  return {};
}

Result<void> read_at(int fd, ByteOffset offset, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset.value));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return fail_errno(done < 0 ? errno : EIO, "reading from the page cache");
    bytes = bytes.subspan(static_cast<std::size_t>(done));
    offset = offset + ByteCount{static_cast<std::uint64_t>(done)};
  }
  return {};
}

Result<void> punch_hole(int fd, ByteRange range) {
  while (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.start.value),
                     static_cast<off_t>(range.length.value)) != 0) {
    if (errno != EINTR) return fail_errno(errno, "punching a hole");
  }
  return {};
}

ByteCount memory_size(int fd) {
  const off_t size = ::lseek(fd, 0, SEEK_END);
  return {size < 0 ? 0 : static_cast<std::uint64_t>(size)};
}

std::optional<ByteOffset> next_data(int fd, ByteOffset from) {
  const off_t data = ::lseek(fd, static_cast<off_t>(from.value), SEEK_DATA);
  if (data < 0) return std::nullopt;
  return ByteOffset{static_cast<std::uint64_t>(data)};
}

bool has_page(int fd, ByteOffset offset) {
  return ::lseek(fd, static_cast<off_t>(offset.value), SEEK_DATA) == static_cast<off_t>(offset.value);
}

ByteCount copy_readable(std::span<std::byte> to, Address from) {
  ByteCount done;
  while (done.value < to.size()) {
    const iovec local{.iov_base = to.data() + done.value, .iov_len = to.size() - done.value};
    const iovec remote{.iov_base = reinterpret_cast<void*>(from.value + done.value), .iov_len = local.iov_len};
    const ssize_t copied = ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
    if (copied <= 0) break;
    done += ByteCount{static_cast<std::uint64_t>(copied)};
  }
  return done;
}

bool any_mapped(Address start, ByteCount length) {
  unsigned char resident = 0;
  for (ByteCount at; at < length; at += kPageSize) {
    if (::mincore(reinterpret_cast<void*>((start + at).value), kPageSize.value, &resident) == 0) return true;
  }
  return false;
}

PageEntry page_entry(Address page) {
  constexpr std::uint64_t kPresent = std::uint64_t{1} << 63U;
  constexpr std::uint64_t kUffdWp = std::uint64_t{1} << 57U;
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::uint64_t entry = 0;
  const auto at = static_cast<off_t>(page.value / kPageSize.value * sizeof entry);
  if (!pagemap || ::pread(pagemap.get(), &entry, sizeof entry, at) != sizeof entry) return {};
  return {.present = (entry & kPresent) != 0, .write_protected = (entry & kUffdWp) != 0};
}

bool poison_marker(Address page) {
  constexpr std::uint64_t kSwapped = std::uint64_t{1} << 4U;  // an entry for something that is not in memory
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  page_region found{};
  pm_scan_arg request{};
  request.size = sizeof request;
  request.start = page.value;
  request.end = page.value + kPageSize.value;
  request.vec = reinterpret_cast<std::uintptr_t>(&found);
  request.vec_len = 1;
  request.category_mask = kSwapped | PAGE_IS_WRITTEN;  // not one that only says that the page is write-protected
  request.return_mask = kSwapped;
  return pagemap && ::ioctl(pagemap.get(), PAGEMAP_SCAN, &request) == 1;
}

Result<WrittenScan> scan_written(Address start, Address end, std::span<page_region> found, bool rearm) {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return fail_errno(errno, "opening /proc/self/pagemap");
  pm_scan_arg request{};
  request.size = sizeof request;
  request.flags = PM_SCAN_CHECK_WPASYNC | (rearm ? PM_SCAN_WP_MATCHING : 0);
  request.start = start.value;
  request.end = end.value;
  request.vec = reinterpret_cast<std::uintptr_t>(found.data());
  request.vec_len = found.size();
  request.category_mask = PAGE_IS_WRITTEN;
  request.return_mask = PAGE_IS_WRITTEN;
  const int regions = ::ioctl(pagemap.get(), PAGEMAP_SCAN, &request);
  if (regions >= 0) return WrittenScan{.regions = static_cast<std::size_t>(regions), .end = {request.walk_end}};
  if (errno == ENOTTY) return fail(Errc::unsupported, "this kernel has no PAGEMAP_SCAN: it needs Linux 6.7", ENOTTY);
  return fail_errno(errno, "PAGEMAP_SCAN");
}

Result<void> populate_memory(std::span<std::byte> memory) {
  while (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    return fail(Errc::no_memory, fmt::format("no memory for {} bytes", memory.size()), errno);
  }
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

Result<MappedMemory> map_memory(ByteCount length, int protection, int flags, int fd, ByteOffset offset) {
  void* data = ::mmap(nullptr, length.value, protection, flags, fd, static_cast<off_t>(offset.value));
  if (data == MAP_FAILED) {
    return fail_errno(errno, fmt::format("mapping {} bytes (limits: ulimit -v, vm.max_map_count)", length.value));
  }
  return MappedMemory(static_cast<std::byte*>(data), length.value);
}

ByteCount physical_memory() {
  return {static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE))};
}

}  // namespace uffda::os
