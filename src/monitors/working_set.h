// A working set: which folios of an object a run touched, in which order and when; and the file that keeps it
// (docs/formats/working-set.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/page_source.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// Folios that were touched for the first time, together.
struct TouchedRun {
  FolioRange folios;
  std::chrono::milliseconds at{};  ///< after the recording began
  bool operator==(const TouchedRun&) const = default;
};

struct WorkingSet {
  std::string name;              ///< of the export
  ByteCount size;                ///< of the object
  ByteCount folio_size;          ///< of the object that was recorded
  bool complete = true;          ///< false: there were more touches than a recording has room for
  std::vector<TouchedRun> runs;  ///< in the order of their touches; disjoint
  bool operator==(const WorkingSet&) const = default;
};

inline constexpr std::size_t kMaxWorkingSets = 256;                    ///< in one file
inline constexpr std::size_t kMaxTouchedRuns = std::size_t{1} << 20U;  ///< of one working set

/// The file's contents.
std::vector<std::byte> working_set_bytes(std::span<const WorkingSet> sets);
/// Errors: invalid_argument (what is wrong with it: not such a file, another version, damaged).
Result<std::vector<WorkingSet>> parse_working_sets(std::span<const std::byte> bytes);

/// Errors: not_found, permission_denied, io; invalid_argument as above. The message names the file.
Result<std::vector<WorkingSet>> read_working_sets(const std::string& file);
/// Those that came with the bytes of a source; empty: none did. Errors: as PageSource::working_set; invalid_argument as
/// above. The message names the source.
Result<std::vector<WorkingSet>> read_working_sets(PageSource& source);
/// Writes beside it, flushes, and renames: whoever reads `file` finds the old one or the new one. Errors: io,
/// permission_denied.
Result<void> write_working_sets(const std::string& file, std::span<const WorkingSet> sets);

/// The one for an export of `name` and `size`, which is one of `exports`: by its name; or the only one there is, for
/// the only export. Errors: not_found; invalid_argument (it is there, of an object of another size).
Result<const WorkingSet*> find_working_set(std::span<const WorkingSet> sets, std::string_view name, ByteCount size,
                                           std::size_t exports);

}  // namespace uffda
