// What a module offers, behind whatever boundary it stands: in this process (direct.cpp) or in one of its own
// (remote.cpp). Calls block for as long as the module pleases, so they are made through a Calls.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "modules/abi.h"
#include "modules/bounce.h"
#include "modules/calls.h"
#include "os/fd.h"
#include "uffda/page_source.h"
#include "uffda/result.h"

namespace uffda::modules {

using Arguments = std::vector<std::pair<std::string, std::string>>;

/// An opened source. What it returns is checked, except what only its user can know: the sizes of properties().
class SourceOps {
 public:
  virtual ~SourceOps() = default;
  virtual Result<SourceProperties> properties() = 0;
  /// Fills the buffer; the bytes that the module says it wrote.
  virtual Result<std::int64_t> fetch(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) = 0;
  /// Starts filling it. `answer` gets what fetch would return.
  virtual void fetch_async(ByteOffset offset, const std::shared_ptr<Bounce>& buffer, Deadline deadline,
                           const Calls::Answer& answer) = 0;
  /// The last call.
  virtual Result<std::int64_t> close() = 0;
  /// Nobody wants anything of it any more, though a call may still be inside. Never waits.
  virtual void abandon() {}
};

class SourceKind {
 public:
  virtual ~SourceKind() = default;
  [[nodiscard]] virtual const SourceAbout& about() const = 0;
  virtual Result<std::shared_ptr<SourceOps>> open(const Arguments& arguments) = 0;
};

/// The memory of one object.
class MemoryOps {
 public:
  virtual ~MemoryOps() = default;
  /// Publishes, and where the table has CONTINUE looks each folio up.
  virtual Result<std::int64_t> publish(ByteOffset offset, const std::shared_ptr<Bounce>& bytes) = 0;
  /// Drops, and where the table has CONTINUE looks that each folio is gone.
  virtual Result<std::int64_t> drop(ByteRange range) = 0;
  virtual Result<std::int64_t> read(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) = 0;
  /// 1: the folio is cached; 0: it is not. What the module says of it is checked, and it is given back.
  virtual Result<std::int64_t> look_up(FolioIndex index) = 0;
  virtual Result<os::UniqueFd> mapping() = 0;
  virtual Result<os::UniqueFd> share() = 0;
  virtual Result<std::int64_t> destroy() = 0;
  /// As SourceOps::abandon.
  virtual void abandon() {}
};

class TypeKind {
 public:
  virtual ~TypeKind() = default;
  [[nodiscard]] virtual const TypeAbout& about() const = 0;
  virtual Result<std::shared_ptr<MemoryOps>> create(std::uint64_t object, ByteCount size, const std::string& name) = 0;
};

/// All that a module registered.
struct Offers {
  std::vector<std::shared_ptr<SourceKind>> sources;
  std::vector<std::shared_ptr<TypeKind>> types;
};

/// Loads a shared object into this process and has it register. May take for ever: call it through a Calls. `label` is
/// for complaints. Errors: not_found, invalid_argument.
Result<Offers> load_direct(const std::string& path, const std::string& label);

}  // namespace uffda::modules
