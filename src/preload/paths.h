// A served file that is not where the program looks for it: where neither a mount namespace can be had nor PATH can be
// made, the FUSE file is mounted elsewhere and calls that name PATH are given the other name. UFFDA_SHIM_PATHS,
// "asked=real
// [;...]", both absolute; not set, nothing is rewritten.
//
// Reach: programs that load the shim. PATH is not listed by readdir, and /proc/self/fd shows the other name.
#pragma once

namespace uffda::shim {

/// Reads UFFDA_SHIM_PATHS. Called once, by the constructor.
void read_path_environment();

/// The name to use for `path`, relative to `directory` as in openat(2): itself, or the real one of a served file.
const char* real_path(int directory, const char* path);

/// The asked name of the served file that `path` is, or nullptr.
const char* asked_path(int directory, const char* path);

}  // namespace uffda::shim
