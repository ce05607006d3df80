// `uffda qemu save` and `uffda qemu restore`: what they take, and what they do.
#pragma once

#include <string>
#include <vector>

#include "qemu/restore.h"
#include "qemu/save.h"
#include "uffda/result.h"

namespace CLI {  // NOLINT(readability-identifier-naming): the name is that of the library CLI11
class App;
}

namespace uffda::cli {

struct QemuSaveCommand {
  qemu::SaveOptions options;
};

struct QemuRestoreCommand {
  qemu::RestoreOptions options;
  std::string report;  ///< JSON at the end; empty: none
};

/// Their words and option values as they were written.
struct QemuTexts {
  std::vector<std::string> words;
  std::string qmp, state, ram, level, budget, deadline, warn_after, record, prefetch, report;
  bool no_prefetch = false, stay_stopped = false;
};

void add_qemu_command(CLI::App& root, QemuTexts& texts);
/// Whether it is `save`, and not `restore`.
bool is_save(const QemuTexts& texts);
/// Errors: invalid_argument: what to write instead.
Result<QemuSaveCommand> qemu_save_command(const QemuTexts& texts);
Result<QemuRestoreCommand> qemu_restore_command(const QemuTexts& texts);

/// Each returns the exit status, or why it failed.
Result<int> run_qemu_save(QemuSaveCommand command);
Result<int> run_qemu_restore(QemuRestoreCommand command);

}  // namespace uffda::cli
