#include "memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "fail.h"
#include "guest.h"

GuestMemory map_guest_memory(std::uint64_t size, Kind kind, Pages pages) {
  GuestMemory memory{.size = size, .page = pages == Pages::huge ? guest::kHugePage : guest::kPage};
  memory.memfd = kind == Kind::memfd;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (pages == Pages::huge ? MAP_HUGETLB : 0);
  int fd = -1;
  if (memory.memfd) {
    fd = ::memfd_create("guest", MFD_CLOEXEC | (pages == Pages::huge ? MFD_HUGETLB : 0U));
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size)) != 0) fail("a memfd for the guest's memory");
    flags = MAP_SHARED | MAP_NORESERVE;
  }
  void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (mapped == MAP_FAILED) fail("mapping the guest's memory");
  if (fd >= 0) ::close(fd);
  memory.start = static_cast<std::byte*>(mapped);
  return memory;
}

int open_userfault(std::uint64_t features) {
  auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) {
    const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    constexpr unsigned long kNew = _IO(0xAA, 0x00);
    fd = device < 0 ? -1 : ::ioctl(device, kNew, O_CLOEXEC | O_NONBLOCK);
  }
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (fd < 0 || ::ioctl(fd, UFFDIO_API, &api) != 0) fail("userfaultfd");
  return fd;
}

void register_memory(int userfault, const void* start, std::uint64_t size, std::uint64_t modes) {
  uffdio_register request{};
  request.range = {.start = reinterpret_cast<std::uintptr_t>(start), .len = size};
  request.mode = modes;
  if (::ioctl(userfault, UFFDIO_REGISTER, &request) != 0) fail("UFFDIO_REGISTER");
}

void give_back(const GuestMemory& memory, std::uint64_t offset, std::uint64_t length) {
  const int how = memory.memfd ? MADV_REMOVE : MADV_DONTNEED;
  if (::madvise(memory.start + offset, length, how) != 0) fail("madvise");
}

int connect_to(const std::string& path, int type) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) fail_plainly("the socket's path is too long");
  std::ranges::copy(path, address.sun_path);
  const int socket = ::socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  if (socket < 0 || ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    fail(path.c_str());
  return socket;
}

bool send_with_descriptor(int socket, const void* bytes, std::size_t size, int descriptor) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  iovec part{.iov_base = const_cast<void*>(bytes), .iov_len = size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}
