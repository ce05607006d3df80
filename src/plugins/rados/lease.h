// The right to write to an image, which one process has at a time. Two things on the header object say who:
//
//   - a lock of RADOS with an end, which its owner renews: nobody else gets in while he lives. Its cookie names the
//     process, so that on the same machine a dead one's lock is broken at once;
//   - a record (an attribute): the last writer's number and address, and whether he has left in good order. One who has
//     not is blocklisted before the next begins: from then on no OSD takes a write of his, whether he is dead and it
//     was on its way, or he only slept and wakes up.
//
// The order: lock, read the record, blocklist, replace the record (only if it is still the one that was read), then
// read the header. Who loses a race anywhere finds another record and has written nothing.
#pragma once

#include <memory>
#include <string>

#include "plugins/rados/cluster.h"

namespace uffda::sources::rados {

inline constexpr std::chrono::seconds kLockTime{30};  ///< of one who has died elsewhere
inline constexpr std::chrono::seconds kRenewEvery{10};

struct WriterRecord {
  std::uint64_t number = 0;   ///< of the writers of this image; 0: it never had one
  bool open = false;          ///< he has not left in good order
  std::uint64_t changes = 0;  ///< that he tried to make to the header; none has the number of another
  std::string address;        ///< for the blocklist

  [[nodiscard]] std::string text() const;  ///< empty: it never had one
  static Result<WriterRecord> parse(const std::string& text);
  /// Of the image's header object. Errors: those of reading it, invalid_argument.
  static Result<WriterRecord> read(const Cluster& cluster);
  /// The attribute that has it.
  static constexpr const char* kAttribute = "uffda.writer";
};

/// Who holds the lock of the image now, in words; empty: nobody. Errors: those of asking.
Result<std::string> writer_of(const Cluster& cluster);

/// Threads: one at a time.
class Lease {
 public:
  /// May wait for the cluster. Errors: busy (somebody writes, who is named), not_found (no such image),
  /// permission_denied, timed_out, io.
  static Result<std::unique_ptr<Lease>> take(std::shared_ptr<const Cluster> cluster);
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  /// Without release(), who comes next takes over as from one that was killed.
  ~Lease();

  [[nodiscard]] std::uint64_t number() const { return record_.number; }
  Result<void> renew();
  /// Replaces the header by one with other bits, if the image is still ours. On an error it may be stored or not.
  /// Errors: busy (it is not), cancelled (try again), timed_out, io.
  Result<void> store(const Header& header);
  /// Requires: no write is under way.
  void release();

 private:
  explicit Lease(std::shared_ptr<const Cluster> cluster) : cluster_(std::move(cluster)) {}
  Result<void> lock();
  Result<void> fence();
  Result<void> look_again();
  [[nodiscard]] int try_lock();

  const std::shared_ptr<const Cluster> cluster_;
  std::string cookie_;
  bool locked_ = false;
  WriterRecord record_;    ///< what stands there, as far as known
  bool doubtful_ = false;  ///< whether the last change was made is not known
  std::uint64_t tried_ = 0;
};

}  // namespace uffda::sources::rados
