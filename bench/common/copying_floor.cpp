#include "common/copying_floor.h"

#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "common/bench.h"

namespace bench {
namespace {

constexpr int kMostWaiting = 128;  // connections

struct CopiedVm {
  int userfault;
  std::uint64_t base;
};

int cached_pages(std::size_t pages) {
  const int memfd = ::memfd_create("copying-floor", MFD_CLOEXEC);
  const std::vector<std::byte> bytes(pages * kPage, std::byte{1});
  check(memfd >= 0 && ::write(memfd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "memfd");
  return memfd;
}

void answer_faults(const CopiedVm& vm, int memfd, std::span<std::byte> page) {
  std::array<uffd_msg, 16> messages{};
  const ssize_t size = ::read(vm.userfault, messages.data(), sizeof messages);
  for (std::size_t i = 0; size > 0 && i < static_cast<std::size_t>(size) / sizeof(uffd_msg); ++i) {
    const uffd_msg& message = messages.at(i);
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const std::uint64_t address = message.arg.pagefault.address & ~(kPage - 1);
    const auto offset = static_cast<off_t>(address - vm.base);
    check(::pread(memfd, page.data(), kPage, offset) == static_cast<ssize_t>(kPage), "pread");
    uffdio_copy copy{};
    copy.dst = address;
    copy.src = reinterpret_cast<std::uintptr_t>(page.data());
    copy.len = kPage;
    ::ioctl(vm.userfault, UFFDIO_COPY, &copy);
  }
}

[[noreturn]] void serve_all(int epoll, int memfd) {
  std::vector<std::byte> page(kPage);
  for (;;) {
    std::array<epoll_event, 16> events{};
    const int count = ::epoll_wait(epoll, events.data(), events.size(), -1);
    for (int i = 0; i < count; ++i)
      answer_faults(*static_cast<const CopiedVm*>(events.at(static_cast<std::size_t>(i)).data.ptr), memfd, page);
  }
}

/// The next one, which stays for ever.
const CopiedVm* take_vm(int listening) {
  const int socket = ::accept(listening, nullptr, nullptr);
  check(socket >= 0, "accept");
  std::array<char, 512> text{};
  iovec part{.iov_base = text.data(), .iov_len = text.size() - 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  check(::recvmsg(socket, &message, 0) > 0 && CMSG_FIRSTHDR(&message) != nullptr, "recvmsg");
  auto* const vm = new CopiedVm{};
  std::memcpy(&vm->userfault, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof vm->userfault);
  const char* const base = std::strchr(text.data(), ':');
  check(base != nullptr, "a message of Firecracker's");
  vm->base = std::strtoull(base + 1, nullptr, 10);
  return vm;
}

[[noreturn]] void run_floor(int listening, std::size_t pages) {
  const int memfd = cached_pages(pages);
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  check(epoll >= 0, "epoll");
  std::thread([=] { serve_all(epoll, memfd); }).detach();
  for (;;) {
    const CopiedVm* const vm = take_vm(listening);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = const_cast<CopiedVm*>(vm);
    check(::epoll_ctl(epoll, EPOLL_CTL_ADD, vm->userfault, &event) == 0, "epoll_ctl");
  }
}

}  // namespace

CopyingFloor::CopyingFloor(std::string socket, std::size_t pages) : socket_(std::move(socket)) {
  ::unlink(socket_.c_str());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy_n(socket_.c_str(), std::min(socket_.size(), sizeof address.sun_path - 1), address.sun_path);
  const int listening = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(::bind(listening, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, socket_);
  check(::listen(listening, kMostWaiting) == 0, socket_);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  check(pid_ >= 0, "fork");
  if (pid_ == 0) {
    check(::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
    if (::getppid() == parent) run_floor(listening, pages);
    ::_exit(1);
  }
  ::close(listening);
}

CopyingFloor::~CopyingFloor() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  ::unlink(socket_.c_str());
}

}  // namespace bench
