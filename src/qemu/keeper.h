// The keeper: a small process that outlives a restore which is killed, and keeps what the next one needs.
//
//   restore --fork--> keeper: the connection to QEMU's monitor, and our ends of socket pairs ("spares") whose other
//   ends killed            QEMU has. The next restore finds it by the monitor's path, and borrows all of that.
//
// Why: a QEMU whose main thread waits for a page that is missing answers its monitor only out of band, and agrees to
// that with nobody who connects then. And the stream to go on with has to be there already, for `getfd` is not allowed
// out of band.
//
// It ends when QEMU does, when it is told to, and when a restore ends before a machine had begun. It hears of
// everything by notes, so that both ends know the same (Kept). A note that was sent arrives, even if its sender is
// killed next.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Our end of a stream; QEMU has the other by the name of this number.
struct Spare {
  std::uint64_t number = 0;
  os::UniqueFd end;
  [[nodiscard]] std::string name() const;
};

enum class Note : std::uint32_t {
  monitor,   ///< the connection; number: of restores that have had it
  begun,     ///< from now on there is a machine to go on with
  spare,     ///< a spare that QEMU has, and our end
  handing,   ///< QEMU is about to be told to use that spare, which is the stream now
  taken,     ///< QEMU has taken the stream
  let_go,    ///< of the stream: a copy of it is of no use any more
  told,      ///< that was all
  complete,  ///< nothing has to be kept any more
};

/// What is kept.
struct Kept {
  os::UniqueFd monitor;
  std::uint64_t restores = 0;
  std::deque<Spare> spares;
  /// A machine that is told to go on: QEMU 7.2 ends if this stream does before it has said that it goes on.
  std::optional<Spare> stream;
  bool taken = false;  ///< QEMU has taken the stream, for sure
  bool begun = false;

  /// Makes it so. Errors: protocol (there is no such spare).
  Result<void> apply(Note note, std::uint64_t number, os::UniqueFd fd);
};

/// A restore's connection to the keeper: as long as it is open nobody else has what is kept. Threads: one.
class Keeper {
 public:
  /// The keeper of the QEMU whose monitor is at that path, and all that it keeps; null: there is none. Waits for a
  /// restore that ends. Errors: busy (another restore has it), permission_denied (another user's).
  static Result<std::unique_ptr<Keeper>> find(const std::string& qmp_path, Kept& kept);
  /// Starts one, with a copy of that connection. Requires: no other thread. Errors: busy and permission_denied (there
  /// is one), no_memory.
  static Result<std::unique_ptr<Keeper>> start(const std::string& qmp_path, int monitor);

  /// `fd` is passed as a copy. Errors: gone (it was killed).
  Result<void> note(Note note, std::uint64_t number = 0, int fd = -1);
  /// Ends it, and waits for that. Errors: timed_out.
  Result<void> end();

 private:
  explicit Keeper(os::UniqueFd socket) : socket_(std::move(socket)) {}
  os::UniqueFd socket_;
};

}  // namespace uffda::qemu
