// How a restore gets into a QEMU: by its monitor, by the keeper of an earlier restore, or by both; and the stream that
// it then has.
//
//   QEMU waits for a machine            getfd, migrate-incoming
//   its source is gone, it answers      spares are given; then as the next
//   its source is gone, and a keeper    migrate-recover, out of band, with a spare: whether QEMU's main thread waits
//   has spares                          for a page or not makes no difference
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "os/fd.h"
#include "qemu/cancel.h"
#include "qemu/keeper.h"
#include "qemu/qmp.h"
#include "uffda/result.h"

namespace uffda::qemu {

enum class Way : std::uint8_t { from_the_start, resumed };

/// Threads: one.
class Entry {
 public:
  /// Finds the keeper, or connects to the monitor and starts one: not if the monitor has no out of band requests, and
  /// with a warning, if somebody else sits on its name.
  /// `cancel` ends its waits for QEMU, from now on. Requires: no other thread. Errors: as Keeper::find and
  /// Qmp::connect.
  static Result<Entry> open(const std::string& qmp_path, Cancel cancel);
  Entry(Entry&&) = default;
  Entry& operator=(Entry&&) = delete;
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
  /// The keeper stays if there is a machine to go on with.
  ~Entry();

  struct Stream {
    Way way;
    os::UniqueFd end;
  };
  /// Errors: invalid_argument (this QEMU waits for no machine), unsupported (a capability), timed_out (QEMU does not
  /// answer, or takes no other stream), cancelled, and as Qmp::execute.
  Result<Stream> enter();
  /// The machine runs, or goes on: from now on the stream may end.
  void note_running();
  /// QEMU has all pages: the keeper ends.
  void complete();

  [[nodiscard]] Qmp& qmp() { return qmp_; }

 private:
  Entry(Qmp qmp, std::unique_ptr<Keeper> keeper, Kept kept, Cancel cancel)
      : qmp_(std::move(qmp)), keeper_(std::move(keeper)), kept_(std::move(kept)), cancel_(cancel) {}
  void tell(Note note, std::uint64_t number = 0, os::UniqueFd fd = {});
  Result<Way> ask_way();
  Result<void> give_spares();
  Result<void> settle();
  Result<std::optional<os::UniqueFd>> recover();

  Qmp qmp_;
  std::unique_ptr<Keeper> keeper_;  // null: as if there were no such thing
  Kept kept_;                       // without the monitor
  Cancel cancel_;
};

}  // namespace uffda::qemu
