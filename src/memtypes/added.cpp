#include "memtypes/added.h"

#include <vector>

#include "base/mutex.h"
#include "memtypes/builtin.h"

namespace uffda {
namespace {

using Make = std::function<std::unique_ptr<MemoryType>()>;

struct Added {
  Mutex mutex;
  std::vector<Make> list UFFDA_GUARDED_BY(mutex);
};

Added& added() {
  static auto* const types = new Added;
  return *types;
}

std::vector<Make> all() {
  const MutexLock lock(added().mutex);
  return added().list;
}

}  // namespace

Result<void> register_added_types(MemoryTypes& types) {
  for (const Make& make : all()) UFFDA_TRY_VOID(types.register_type(make()));
  return {};
}

Result<void> add_memory_type(Make make) {
  MemoryTypes others;
  UFFDA_TRY_VOID(register_builtin_types(others));
  UFFDA_TRY_VOID(others.register_type(make()));
  const MutexLock lock(added().mutex);
  added().list.push_back(std::move(make));
  return {};
}

}  // namespace uffda
