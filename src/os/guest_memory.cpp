#include "os/guest_memory.h"

#include <fcntl.h>

#include <cerrno>

#include "os/kernel_abi.h"

namespace uffda::os {
namespace {

Result<UniqueFd> new_machine() {
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm && errno == EACCES)
    return fail(Errc::permission_denied, "/dev/kvm is not permitted: add this user to group kvm", EACCES);
  if (!kvm)
    return fail(Errc::unsupported, "no /dev/kvm: it needs a CPU with virtualisation, and the kvm module", errno);
  UniqueFd machine(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!machine) return fail_errno(errno, "KVM_CREATE_VM");
  return machine;
}

}  // namespace

Result<UniqueFd> create_guest_memfd(ByteCount size, int vm) {
  UniqueFd own;
  if (vm == kThrowAwayMachine) {
    own = UFFDA_TRY(new_machine());
    vm = own.get();
  }
  kvm_create_guest_memfd request{};
  request.size = size.value;
  request.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
  UniqueFd fd(::ioctl(vm, KVM_CREATE_GUEST_MEMFD, &request));
  if (fd) return fd;
  const int error = errno;
  if (error == EBADF || (error == ENOTTY && !own))
    return fail(Errc::invalid_argument, "the descriptor is not that of a KVM machine", error);
  if (error == EINVAL || error == ENOTTY) {
    return fail(Errc::unsupported, "a guest_memfd that the host can map needs Linux 6.18 with CONFIG_KVM_GUEST_MEMFD=y",
                error);
  }
  return fail_errno(error, "KVM_CREATE_GUEST_MEMFD");
}

}  // namespace uffda::os
