// KVM's guest_memfd: memory that belongs to a virtual machine, mapped in the host, too (GUEST_MEMFD_FLAG_MMAP and
// INIT_SHARED, Linux 6.18).
//
// The kernel's userfaultfd registers it in no mode but WP on a descriptor with WP_ASYNC, which tracks writes and raises
// no faults. So nothing of it can be fetched when it is touched, and what is absent reads as zero: all of it is
// populated before it is mapped, and stays. It has no pwrite: it is filled by storing through a mapping of the
// backing's own, before anybody else has one.
//
// A guest_memfd is made on one virtual machine. To give its descriptor to KVM (KVM_SET_USER_MEMORY_REGION2) it has to
// be that of the guest, which the option `vm=FD` names; without it one is made and thrown away, and a guest uses the
// memory by its address.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include <fmt/format.h>

#include "memtypes/builtin.h"
#include "mm/memory_object.h"
#include "os/guest_memory.h"
#include "os/memory.h"

namespace uffda {
namespace {

constexpr UffdOps kGuestMemfdOps{.modes = UffdMode::wp, .ioctls = UffdIoctl::writeprotect, .wp_async_only = true};

class GuestMemfdBacking final : public Backing {
 public:
  GuestMemfdBacking(os::UniqueFd fd, os::MappedMemory mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    const std::span<std::byte> memory = mapping_.bytes().subspan(range.start.value, bytes.size());
    UFFDA_TRY_VOID(
        os::populate_memory(mapping_.bytes().subspan(range.start.value, align_up(bytes.size(), kPageSize.value))));
    std::ranges::copy(bytes, memory.begin());
    return {};
  }
  Result<void> drop(ByteRange range) override {
    const std::uint64_t length = align_up(range.length.value, kPageSize.value);
    return os::punch_hole(fd_.get(), {.start = range.start, .length = {length}});
  }
  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) override {
    std::ranges::copy(mapping_.bytes().subspan(offset.value, bytes.size()), bytes.begin());
    return {};
  }
  Result<os::UniqueFd> share() override {
    return fail(Errc::unsupported, "a guest_memfd cannot be opened for reading only, so it is not handed to clients");
  }
  [[nodiscard]] int mapping_fd() const override { return fd_.get(); }

 private:
  os::UniqueFd fd_;
  os::MappedMemory mapping_;
};

class GuestMemfdType final : public MemoryType {
 public:
  [[nodiscard]] std::string_view name() const override { return "guest_memfd"; }
  [[nodiscard]] const UffdOps* ops() const override { return &kGuestMemfdOps; }
  [[nodiscard]] ByteCount folio_size() const override { return kPageSize; }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    return create_with(size, name, {});
  }
  Result<std::unique_ptr<Backing>> create_with(ByteCount size, const std::string&,
                                               std::string_view options) const override {
    const int vm = UFFDA_TRY(machine_of(options));
    const ByteCount whole{align_up(size.value, kPageSize.value)};
    os::UniqueFd fd = UFFDA_TRY(os::create_guest_memfd(whole, vm));
    auto mapping = UFFDA_TRY(os::map_memory(whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get()));
    if (::madvise(mapping.bytes().data(), whole.value, MADV_DONTFORK) != 0) return fail_errno(errno, "madvise");
    return std::make_unique<GuestMemfdBacking>(std::move(fd), std::move(mapping));
  }

 private:
  static Result<int> machine_of(std::string_view options) {
    if (options.empty()) return os::kThrowAwayMachine;
    constexpr std::string_view kKey = "vm=";
    int vm = -1;
    const char* const end = options.data() + options.size();
    if (options.starts_with(kKey) && std::from_chars(options.data() + kKey.size(), end, vm).ptr == end && vm >= 0)
      return vm;
    return fail(Errc::invalid_argument,
                fmt::format("memory type guest_memfd: '{}' is not vm=FD, the descriptor of a KVM machine", options));
  }
};

}  // namespace

std::unique_ptr<MemoryType> make_guest_memfd_type() { return std::make_unique<GuestMemfdType>(); }

}  // namespace uffda
