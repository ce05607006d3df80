// The connections that hear what an operator should hear: ranges that could not be had.
//
// Whoever reports is a thread of the core with faults to answer, so nothing here waits: a watcher whose socket is full
// is dropped.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "mm/core.h"
#include "server/handoff_wire.h"
#include "uffda/result.h"

namespace uffda {

/// Threads: any.
class Watchers {
 public:
  static constexpr std::size_t kMaxWatchers = 64;

  /// Sends `confirmation` and then, in that order, every notice. `socket` stays open until remove() has returned.
  /// Errors: no_memory (too many watchers), gone.
  Result<void> add(int socket, std::span<const std::byte> confirmation);
  /// Nothing is sent to the socket any more. False if it was not a watcher's.
  bool remove(int socket);
  [[nodiscard]] std::size_t count() const;
  /// Whether there ever was one.
  [[nodiscard]] bool any_ever() const;

  /// An object of that name is served as `export_name`. (A copy of what Exports knows: reports come even while those
  /// are taken down.)
  void know(std::string object_name, std::string export_name);
  /// Tells everybody of a failed range, under each name that the object is served as.
  void tell(const SourceFailure& failure);

 private:
  void send_to_all_locked(const handoff::Notice& notice) UFFDA_REQUIRES(mutex_);

  mutable Mutex mutex_;  // held over sends, which do not wait
  std::vector<int> sockets_ UFFDA_GUARDED_BY(mutex_);
  std::multimap<std::string, std::string> exports_of_ UFFDA_GUARDED_BY(mutex_);
  bool any_ever_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace uffda
