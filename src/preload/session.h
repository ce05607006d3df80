// The shim's side of the handoff protocol (server/handoff_wire.h): one short connection per operation, so that no
// descriptor stays behind in the program.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers)

#include "server/handoff_wire.h"

namespace uffda::shim {

/// A descriptor that is closed at the end of the scope.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(long fd) : fd_((int)fd) {}
  ~Descriptor() { reset(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release();
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

/// Why the server cannot be used. kRefused: it answered, and said no. kUnreachable: no answer that makes sense.
enum class Outcome { kOk, kRefused, kUnreachable };

/// One conversation. Connects when it is first used. Under the shim's lock; every wait ends after kReplySeconds.
class Connection {
 public:
  static constexpr int kReplySeconds = 30;

  /// The page cache of `name`, O_RDONLY, and its size and folio size in bytes.
  Outcome open(const char* name, Descriptor& cache, handoff::OpenReply& reply);
  /// Hands over `userfaultfd`; `token` then names this address space.
  Outcome attach(int userfaultfd, uint64_t features, handoff::Token& token);
  /// Tells that [address, address + length) shows `name` from `offset` on. Bytes, multiples of the page size.
  Outcome map(const handoff::Token& token, const char* name, uint64_t address, uint64_t length, uint64_t offset);
  /// An open /dev/userfaultfd, for programs that may not open it themselves.
  Outcome device(Descriptor& device);

 private:
  bool connect();
  bool send(const void* message, uint32_t size, int fd);
  Outcome receive(handoff::Type type, void* reply, uint32_t size, Descriptor* fd);

  Descriptor socket_;
};

}  // namespace uffda::shim
