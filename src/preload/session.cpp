#include "preload/session.h"

#include <string.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/socket.h>
#include <sys/time.h>

#include <atomic>

#include "preload/config.h"
#include "preload/kernel.h"

namespace uffda::shim {
namespace {

using handoff::Header;
using handoff::Type;

Header header(Type type, uint32_t size) { return Header{handoff::kMagic, handoff::kVersion, (uint16_t)type, size, 0}; }

void copy_name(char (&to)[handoff::kNameSize], const char* name) { strncpy(to, name, sizeof to - 1); }

constexpr rlim_t kHeadroom = 16;

constinit std::atomic<bool> g_gone = false;  // somebody waited in vain

Outcome unreachable() {
  static constinit bool said = false;
  g_gone = true;
  say_once(said, "the supervisor does not answer: new mappings go through FUSE, slower");
  return Outcome::kUnreachable;
}

// Takes the descriptors of a packet: the first goes to `wanted`, if anybody wants it; all others are closed.
void take_descriptors(msghdr& message, Descriptor* wanted) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      if (wanted != nullptr && !wanted->valid()) {
        wanted->reset(fd);
      } else {
        (void)kernel(SYS_close, fd);
      }
    }
  }
}

}  // namespace

Outcome Connection::no_answer() const { return patient_ ? Outcome::kUnreachable : unreachable(); }

int Descriptor::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

void Descriptor::reset(int fd) {
  if (fd_ >= 0) (void)kernel(SYS_close, fd_);
  fd_ = fd;
}

DescriptorHeadroom::DescriptorHeadroom() {
  if (kernel(SYS_prlimit64, 0, RLIMIT_NOFILE, nullptr, &before_) != 0) return;
  rlimit more = before_;
  more.rlim_cur = before_.rlim_cur + kHeadroom < before_.rlim_max ? before_.rlim_cur + kHeadroom : before_.rlim_max;
  raised_ = more.rlim_cur > before_.rlim_cur && kernel(SYS_prlimit64, 0, RLIMIT_NOFILE, &more, nullptr) == 0;
}

DescriptorHeadroom::~DescriptorHeadroom() {
  if (raised_) (void)kernel(SYS_prlimit64, 0, RLIMIT_NOFILE, &before_, nullptr);
}

void Connection::forget_failures() { g_gone = false; }

Outcome Connection::connect(int seconds) {
  if (socket_.valid()) return Outcome::kOk;
  if (g_gone) return Outcome::kUnreachable;
  Descriptor fd(kernel(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Outcome::kNoDescriptor;
  const timeval limit{.tv_sec = seconds, .tv_usec = 0};
  (void)kernel(SYS_setsockopt, fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  (void)kernel(SYS_setsockopt, fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  const sockaddr_un& address = config().socket;
  if (kernel(SYS_connect, fd.get(), &address, sizeof address) != 0) return unreachable();
  socket_.reset(fd.release());
  return Outcome::kOk;
}

Outcome Connection::send(const void* message, uint32_t size, int fd) {
  const Outcome connected = connect();
  if (connected != Outcome::kOk) return connected;
  iovec bytes{.iov_base = const_cast<void*>(message), .iov_len = size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr packet{};
  packet.msg_iov = &bytes;
  packet.msg_iovlen = 1;
  if (fd >= 0) {
    packet.msg_control = control;
    packet.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&packet);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
  }
  long sent = 0;
  do {
    sent = kernel(SYS_sendmsg, socket_.get(), &packet, MSG_NOSIGNAL);
  } while (sent == -EINTR);
  return sent == (long)size ? Outcome::kOk : no_answer();
}

Outcome Connection::receive(Type type, void* reply, uint32_t size, Descriptor* fd) {
  alignas(8) char buffer[sizeof(handoff::SyncReply)];
  static_assert(sizeof buffer >= sizeof(handoff::ErrorReply) && sizeof buffer >= sizeof(handoff::OpenReply) &&
                sizeof buffer >= sizeof(handoff::AttachReply));
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
  iovec bytes{.iov_base = buffer, .iov_len = sizeof buffer};
  msghdr packet{};
  packet.msg_iov = &bytes;
  packet.msg_iovlen = 1;
  packet.msg_control = control;
  packet.msg_controllen = sizeof control;
  long got = 0;
  do {
    got = kernel(SYS_recvmsg, socket_.get(), &packet, MSG_CMSG_CLOEXEC);
  } while (got == -EINTR);
  if (failed(got)) return no_answer();
  take_descriptors(packet, fd);
  if (fd != nullptr && !fd->valid() && (packet.msg_flags & MSG_CTRUNC) != 0) return Outcome::kNoDescriptor;
  Header head{};
  if (got < (long)sizeof head) return no_answer();
  memcpy(&head, buffer, sizeof head);
  if (head.magic != handoff::kMagic || head.version != handoff::kVersion) return unreachable();
  if (head.type == (uint16_t)Type::kError) return Outcome::kRefused;
  if (head.type != ((uint16_t)type | handoff::kReply) || head.status != 0 || got < (long)size) {
    return unreachable();
  }
  if (fd != nullptr && !fd->valid()) return unreachable();
  if (reply != nullptr) memcpy(reply, buffer, size);
  return Outcome::kOk;
}

Outcome Connection::open(const char* name, Descriptor& cache, handoff::OpenReply& reply) {
  handoff::OpenRequest request{.header = header(Type::kOpen, sizeof request), .name = {}};
  copy_name(request.name, name);
  const Outcome sent = send(&request, sizeof request, -1);
  if (sent != Outcome::kOk) return sent;
  return receive(Type::kOpen, &reply, sizeof reply, &cache);
}

Outcome Connection::attach(int userfaultfd, uint64_t features, handoff::Token& token) {
  handoff::AttachAsRequest request{
      .header = header(Type::kAttachAs, sizeof request), .features = features, .token = {}};
  if (kernel(SYS_getrandom, request.token.bytes, sizeof request.token.bytes, 0) != sizeof request.token.bytes)
    return Outcome::kRefused;
  const Outcome sent = send(&request, sizeof request, userfaultfd);
  if (sent != Outcome::kOk) return sent;
  handoff::AttachReply reply{};
  const Outcome outcome = receive(Type::kAttachAs, &reply, sizeof reply, nullptr);
  token = reply.token;
  return outcome;
}

Outcome Connection::map(Type how, const handoff::Token& token, const char* name, uint64_t address, uint64_t length,
                        uint64_t offset) {
  handoff::MapRequest request{.header = header(how, sizeof request),
                              .token = token,
                              .name = {},
                              .address = address,
                              .length = length,
                              .offset = offset};
  copy_name(request.name, name);
  const Outcome sent = send(&request, sizeof request, -1);
  if (sent != Outcome::kOk) return sent;
  return receive(how, nullptr, sizeof(Header), nullptr);
}

Outcome Connection::sync(const char* name, uint64_t offset, uint64_t length, uint64_t& seen) {
  patient_ = true;
  handoff::SyncRequest request{
      .header = header(Type::kSync, sizeof request), .name = {}, .offset = offset, .length = length, .seen = seen};
  copy_name(request.name, name);
  const Outcome sent = send(&request, sizeof request, -1);
  if (sent != Outcome::kOk) return sent;
  handoff::SyncReply reply{};
  const Outcome received = receive(Type::kSync, &reply, sizeof reply, nullptr);
  if (received != Outcome::kOk) return received;
  seen = reply.failures;
  return reply.error == 0 ? Outcome::kOk : Outcome::kRefused;
}

Outcome Connection::device(Descriptor& device) {
  const Header request = header(Type::kDevice, sizeof request);
  const Outcome sent = send(&request, sizeof request, -1);
  if (sent != Outcome::kOk) return sent;
  return receive(Type::kDevice, nullptr, sizeof(Header), &device);
}

}  // namespace uffda::shim
