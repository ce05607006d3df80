// What a server serves: named objects, each made of a source that the operator named.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "mm/core.h"
#include "mm/memory_object.h"
#include "uffda/result.h"

namespace uffda {

class KeptState;

/// `name` is what clients ask for; `uri` is where the bytes come from, and where they go, if it is opened for that.
struct ExportSpec {
  std::string name;
  std::string uri;
  OpenFor what_for = OpenFor::reading;
  ByteCount budget{};  ///< of what is cached of it, within the server's; 0: the server's
  bool kill = false;   ///< a client that touches what cannot be had is killed, not only that thread's access
  bool huge = false;   ///< in folios of 2 MiB, for clients that get copies and whose own pages are huge
};

/// The exports of one server. Fixed once they are open, so that any thread may look. Exports of one URI share one
/// object, the budget of the first, and whether it can be written to.
class Exports {
 public:
  using Objects = std::map<std::string, std::shared_ptr<MemoryObject>, std::less<>>;
  static constexpr std::size_t kMaxExports = 256;

  /// Errors: invalid_argument (a name is not 1 to 127 printable bytes, or comes twice; none, or too many), and what
  /// opening a source said.
  /// `kept`: where they outlive a server; null: they do not.
  static Result<Exports> open(Core& core, std::span<const ExportSpec> specs, KeptState* kept = nullptr);

  /// Errors: not_found. The message does not list what there is: who may not know a name need not learn it.
  [[nodiscard]] Result<std::shared_ptr<MemoryObject>> find(std::string_view name) const;
  [[nodiscard]] const Objects& all() const { return objects_; }

 private:
  Objects objects_;
};

}  // namespace uffda
