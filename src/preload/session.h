// The shim's side of the handoff protocol (server/handoff_wire.h): one short connection per operation, so that no
// descriptor stays behind in the program.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/resource.h>

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

/// Why the server cannot be used. kRefused: it answered, and said no. kUnreachable: no answer that makes sense, and a
/// line on standard error says so once. kNoDescriptor: this process has no descriptor left.
enum class Outcome { kOk, kRefused, kUnreachable, kNoDescriptor };

/// A few descriptors more than the program's limit, while it lives: the limit of open files is the program's business,
/// and a fork or an mmap that has nothing to do with it must not fail because of ours.
class DescriptorHeadroom {
 public:
  DescriptorHeadroom();
  ~DescriptorHeadroom();
  DescriptorHeadroom(const DescriptorHeadroom&) = delete;
  DescriptorHeadroom& operator=(const DescriptorHeadroom&) = delete;

 private:
  rlimit before_{};
  bool raised_ = false;
};

/// One conversation. Connects when it is first used. Under the shim's lock, but for sync(); every wait ends after
/// kReplySeconds, and once one has, later conversations of this process fail at once.
class Connection {
 public:
  static constexpr int kReplySeconds = 20;

  /// In a forked child: the supervisor gets another chance.
  static void forget_failures();

  /// The page cache of `name`, O_RDONLY, and its size and folio size in bytes.
  Outcome open(const char* name, Descriptor& cache, handoff::OpenReply& reply);
  /// Hands over `userfaultfd`; `token` then names this address space.
  Outcome attach(int userfaultfd, uint64_t features, handoff::Token& token);
  /// Tells that [address, address + length) shows `name` from `offset` on. Bytes, multiples of the page size. `how`:
  /// kMap or kMapShared.
  Outcome map(handoff::Type how, const handoff::Token& token, const char* name, uint64_t address, uint64_t length,
              uint64_t offset);
  /// What was written to a range of `name` is stored. `seen`: see SyncRequest. kRefused: something could not be.
  /// Without the shim's lock: it waits for the source, up to kSyncSeconds.
  static constexpr int kSyncSeconds = 100;
  /// Before sync(), under the lock.
  Outcome prepare_sync() { return connect(kSyncSeconds); }
  Outcome sync(const char* name, uint64_t offset, uint64_t length, uint64_t& seen);
  /// An open /dev/userfaultfd, for programs that may not open it themselves.
  Outcome device(Descriptor& device);

 private:
  Outcome connect(int seconds = kReplySeconds);
  Outcome send(const void* message, uint32_t size, int fd);
  Outcome receive(handoff::Type type, void* reply, uint32_t size, Descriptor* fd);

  /// Whoever waits for a disk says nothing about the server.
  Outcome no_answer() const;

  Descriptor socket_;
  bool patient_ = false;
};

}  // namespace uffda::shim
