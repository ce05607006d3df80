// Requests to a cluster that change something: several under way, the first error of them, and an end to every wait.
#pragma once

#include <rados/librados.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/mutex.h"
#include "plugins/rados/cluster.h"

namespace uffda::sources::rados {

/// librados copies what it is given to write, so nothing but a State has to live until it answers. Threads: one at a
/// time.
class Changes {
 public:
  /// `forgiven`: a status that is no error.
  Changes(std::shared_ptr<const Cluster> cluster, unsigned parallel, int forgiven = 0);
  Changes(const Changes&) = delete;
  Changes& operator=(const Changes&) = delete;
  /// Waits for all.
  ~Changes();

  /// Waits until one more may be under way, and starts it: `request` makes the call, with this completion.
  /// `what` says in an error what was tried. Errors: that of an earlier one; timed_out.
  Result<void> start(const std::string& what, const std::function<int(rados_completion_t)>& request);
  /// Waits for all. Errors: the first one; timed_out.
  Result<void> finish();

 private:
  /// What answers change. It holds no Cluster: the thread that answers must not be the one that closes it.
  struct State {
    int forgiven = 0;
    Mutex mutex;
    CondVar changed;
    unsigned under_way UFFDA_GUARDED_BY(mutex) = 0;
    std::optional<Error> error UFFDA_GUARDED_BY(mutex);

    void hear(const std::string& what, int status);
  };
  struct Change {
    std::shared_ptr<State> state;
    std::string what;
  };

  static void answered(rados_completion_t completion, void* change);
  /// Waits until no more than `count` are under way. False: they still are, beyond every time limit.
  bool wait_for(unsigned count);
  /// The same, and the first error.
  Result<void> check(unsigned count);

  const std::shared_ptr<const Cluster> cluster_;
  const unsigned parallel_;
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace uffda::sources::rados
