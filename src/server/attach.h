// `uffda attach`: serves a process whose handler has died.
//
// Such a process keeps its userfaultfd and stands still at the next absent page. Who takes a copy of that descriptor
// can serve it, if somebody says what the memory shows: the kernel knows which ranges are trapped (/proc/PID/smaps),
// and nothing else. Pages that are there stay.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "os/fd.h"
#include "os/other_process.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class KeptState;
class Service;

/// [start, start + length) shows the export `name` from `offset` on.
struct NamedRange {
  Address start;
  ByteCount length;
  std::string name;
  ByteOffset offset;

  [[nodiscard]] Address end() const { return start + length; }
};
struct PlainRange {
  Address start;
  ByteCount length;
};

struct AttachPlan {
  std::vector<NamedRange> served;   ///< named and trapped
  std::vector<PlainRange> unnamed;  ///< trapped, and nobody says what they show: SIGBUS
  std::vector<PlainRange> left;  ///< named, and not trapped: the kernel serves them, with zeroes where there is nothing
  ByteCount page_size = kPageSize;  ///< of all that is served
};
/// What becomes of the memory. Pure. Errors: invalid_argument (ranges that are no pages, overlap, or are registered
/// MINOR; nothing of them is trapped; pages of two sizes).
Result<AttachPlan> plan_attach(std::vector<NamedRange> named, const std::vector<os::TrappedRange>& trapped);

/// A userfaultfd that was taken, and what it shows.
struct Attachment {
  os::ProcessHandle process;
  os::UniqueFd userfaultfd;
  os::UserfaultInfo info;
  AttachPlan plan;
};

enum class OtherHandlers : std::uint8_t { refuse, allow };
/// Takes descriptor `fd` of `pid`. Errors: not_found (the process, the descriptor), permission_denied,
/// invalid_argument (no userfaultfd; the plan), busy (another process has it open), unsupported.
Result<Attachment> take_attachment(pid_t pid, int fd, std::vector<NamedRange> named, OtherHandlers others);

/// Serves what was taken. Where a server before has done so (`kept`), nothing changes. Errors: as
/// Service::attach_copied.
Result<void> serve_attachment(Service& service, const KeptState* kept, const Attachment& attachment);

/// What was found and what becomes of it, for people: a line each.
[[nodiscard]] std::vector<std::string> tell_plan(const Attachment& attachment);

}  // namespace uffda
