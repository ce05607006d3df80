// A source whose tickets the test holds and answers, in whatever order and thread it likes.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "support/test_support.h"
#include "uffda/page_source.h"

namespace uffda::test {

/// What a source was asked for. Threads: any.
class Tickets {
 public:
  void add(FetchTicket ticket);
  /// False if fewer than `count` tickets ever arrive in time.
  [[nodiscard]] bool wait_for(std::size_t count) const;
  /// Every range that was asked for, answered or not, in order.
  [[nodiscard]] std::vector<ByteRange> asked() const;
  /// The oldest ticket that is not answered yet; one whose range contains `offset`. Empty if there is none.
  std::optional<FetchTicket> take();
  std::optional<FetchTicket> take(ByteOffset offset);
  [[nodiscard]] std::size_t held() const;
  void answer_all();
  void fail_all(const Error& error);

  std::shared_ptr<PageSink> sink;  ///< the object's, once the source is attached

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<FetchTicket> tickets_;
  std::vector<ByteRange> asked_;
};

/// Hands its tickets to `tickets`; when it goes, those that are left fail.
std::unique_ptr<PageSource> ticket_source(std::shared_ptr<Tickets> tickets, ByteCount size);

/// Answers in the calling thread as `answer` does.
std::unique_ptr<PageSource> answering_source(ByteCount size, std::function<void(FetchTicket)> answer);

}  // namespace uffda::test
