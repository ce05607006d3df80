#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "fail.h"
#include "restore.h"

namespace {

constexpr std::uint32_t kMagic = 0x41444655;
constexpr std::uint16_t kReply = 0x8000;
enum class Type : std::uint16_t { open = 1, map = 3, attach_as = 16 };

struct Header {
  std::uint32_t magic = kMagic;
  std::uint16_t version = 1;
  std::uint16_t type = 0;
  std::uint32_t size = 0;
  std::uint32_t status = 0;
};
using Token = std::array<std::uint8_t, 16>;
using Name = std::array<char, 128>;
struct Open {
  Header header{};
  Name name{};
};
struct Opened {
  Header header{};
  std::uint64_t size = 0;
  std::uint32_t folio_size = 0, flags = 0;
};
struct AttachAs {
  Header header{};
  std::uint64_t features = 0;
  Token token{};  // of our choice: who asks twice is attached once
};
struct Attached {
  Header header{};
  Token token{};
};
struct Map {
  Header header{};
  Token token{};
  Name name{};
  std::uint64_t address = 0, length = 0, offset = 0;
};

template <typename Reply>
const Header& header_of(const Reply& reply) {
  return reply.header;
}
const Header& header_of(const Header& reply) { return reply; }

/// A server that has a holder comes back when it is killed: the request is repeated.
class Server {
 public:
  explicit Server(std::string path) : path_(std::move(path)), socket_(connect_to(path_, SOCK_SEQPACKET)) {}
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() { ::close(socket_); }

  /// Sends a request, and returns its reply. `received`: where the descriptor goes that comes with it.
  template <typename Reply, typename Request>
  Reply ask(Type type, Request request, int passed = -1, int* received = nullptr) {
    request.header.type = static_cast<std::uint16_t>(type);
    request.header.size = sizeof request;
    for (;;) {
      std::array<char, 4096> answer{};
      const bool sent = send_with_descriptor(socket_, &request, sizeof request, passed);
      const ssize_t size = sent ? receive(answer, received) : 0;
      Reply reply{};
      if (size < static_cast<ssize_t>(sizeof(Header))) {
        ::close(socket_);
        socket_ = connect_to(path_, SOCK_SEQPACKET);
        continue;
      }
      std::memcpy(&reply, answer.data(), std::min(static_cast<std::size_t>(size), sizeof reply));
      if (header_of(reply).type != (request.header.type | kReply)) fail_plainly(answer.data() + sizeof(Header));
      return reply;
    }
  }

 private:
  ssize_t receive(std::array<char, 4096>& answer, int* received) const {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec part{.iov_base = answer.data(), .iov_len = answer.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t size = ::recvmsg(socket_, &message, MSG_CMSG_CLOEXEC);
    if (size > 0 && received != nullptr && CMSG_FIRSTHDR(&message) != nullptr)
      std::memcpy(received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof *received);
    return size;
  }

  const std::string path_;
  int socket_;
};

Token random_token() {
  Token token{};
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) fail("getrandom");
  return token;
}

Name name_of(const std::string& text) {
  Name name{};
  if (text.size() >= name.size()) fail_plainly("the export's name is too long");
  std::ranges::copy(text, name.begin());
  return name;
}

}  // namespace

Restored restore_handoff(const std::string& socket_path, const std::string& export_name) {
  Server server(socket_path);
  const Name name = name_of(export_name);
  int cache = -1;
  const auto opened = server.ask<Opened>(Type::open, Open{.name = name}, -1, &cache);
  constexpr std::uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_UNMAP |
                                      UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE;
  Restored restored{.memory = {.size = opened.size}, .userfault = open_userfault(kFeatures)};
  const auto attached = server.ask<Attached>(Type::attach_as, AttachAs{.features = kFeatures, .token = random_token()},
                                             restored.userfault);
  // Nobody may touch it before the server knows of it.
  void* const mapped = ::mmap(nullptr, opened.size, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, cache, 0);
  if (mapped == MAP_FAILED) fail("mapping the server's page cache");
  ::close(cache);
  register_memory(restored.userfault, mapped, opened.size, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
  server.ask<Header>(Type::map, Map{.token = attached.token,
                                    .name = name,
                                    .address = reinterpret_cast<std::uintptr_t>(mapped),
                                    .length = opened.size,
                                    .offset = 0});
  if (::mprotect(mapped, opened.size, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
  restored.memory.start = static_cast<std::byte*>(mapped);
  return restored;
}
