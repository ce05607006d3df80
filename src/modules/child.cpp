#include "modules/child.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>
#include <thread>

#include "base/mutex.h"
#include "modules/loader.h"
#include "modules/wire.h"
#include "os/memory.h"
#include "os/socket.h"

namespace uffda::modules {
namespace {

/// What the module has open, by number.
template <typename Object>
class Objects {
 public:
  std::uint64_t add(std::shared_ptr<Object> object) {
    const MutexLock lock(mutex_);
    objects_.emplace(next_, std::move(object));
    return next_++;
  }
  Result<std::shared_ptr<Object>> find(std::uint64_t number) {
    const MutexLock lock(mutex_);
    const auto found = objects_.find(number);
    if (found == objects_.end()) return fail(Errc::protocol, "the host asked for an object that is not there");
    return found->second;
  }
  void remove(std::uint64_t number) {
    const MutexLock lock(mutex_);
    objects_.erase(number);
  }

 private:
  Mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Object>> objects_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t next_ UFFDA_GUARDED_BY(mutex_) = 1;
};

void put_offers(Writer& writer, const Offers& offers) {
  writer.number(offers.sources.size());
  for (const auto& source : offers.sources) {
    const SourceAbout& about = source->about();
    writer.text(about.name).text(about.help).text(about.example).number(about.parallel ? 1 : 0);
    writer.number(about.asynchronous ? 1 : 0).number(about.parameters.size());
    for (const auto& parameter : about.parameters) writer.text(parameter.key).text(parameter.help);
  }
  writer.number(offers.types.size());
  for (const auto& type : offers.types) {
    const TypeAbout& about = type->about();
    writer.text(about.name).text(about.help).number(about.ops.modes.bits()).number(about.ops.ioctls.bits());
    writer.number(about.folio_size).number(about.parallel ? 1 : 0).number(about.shareable ? 1 : 0);
    writer.number(about.hook ? 1 : 0);
  }
}

class Child {
 public:
  Child(Offers offers, std::span<std::byte> staging) : offers_(std::move(offers)), staging_(staging) {}

  /// One request, one reply.
  void answer(std::span<const std::byte> packet) {
    Reader request(packet);
    const std::uint64_t id = request.number();
    const auto op = static_cast<Op>(request.number());
    Writer extra;
    os::UniqueFd passed;
    const Result<std::int64_t> outcome = run(op, request, extra, passed);
    Writer reply;
    reply.number(id);
    put_outcome(reply, outcome);
    // A host that does not take its reply is gone.
    if (!os::send_packet(kChildSocket, reply.bytes(), extra.bytes(), passed.get(), os::Waiting::until)) ::_exit(0);
  }

 private:
  Result<std::int64_t> run(Op op, Reader& request, Writer& extra, os::UniqueFd& passed);
  Result<std::int64_t> open(Reader& request);
  Result<std::int64_t> create(Reader& request);
  Result<std::int64_t> properties(Reader& request, Writer& extra);
  Result<std::int64_t> fetch(Reader& request);
  Result<std::int64_t> publish(Reader& request);
  Result<std::int64_t> read(Reader& request);

  /// A buffer of this process for the bytes of a slot: a module that writes past its end is found out.
  Result<std::shared_ptr<Bounce>> buffer(std::uint64_t length) {
    if (length > kSlot) return fail(Errc::protocol, "a request is larger than a slot");
    return buffers_.take(length);
  }
  std::span<std::byte> slot(std::uint64_t number, std::uint64_t length) {
    return staging_.subspan(number % kSlots * kSlot, length);
  }
  Result<std::int64_t> fetch_and_wait(SourceOps& source, ByteOffset offset, const std::shared_ptr<Bounce>& bytes,
                                      Deadline deadline);

  Offers offers_;
  std::span<std::byte> staging_;
  BouncePool buffers_;
  Objects<SourceOps> sources_;
  Objects<MemoryOps> memories_;
};

Result<std::int64_t> Child::open(Reader& request) {
  const std::uint64_t number = request.number();
  const std::uint64_t count = request.number();
  Arguments arguments;
  for (std::uint64_t i = 0; request.good() && i < count; ++i) {
    std::string key = request.text();
    arguments.emplace_back(std::move(key), request.text());
  }
  if (!request.good() || number >= offers_.sources.size()) return fail(Errc::protocol, "a bad request");
  return static_cast<std::int64_t>(sources_.add(UFFDA_TRY(offers_.sources[number]->open(arguments))));
}

Result<std::int64_t> Child::create(Reader& request) {
  const std::uint64_t number = request.number();
  const std::uint64_t object = request.number();
  const ByteCount size{request.number()};
  const std::string name = request.text();
  if (!request.good() || number >= offers_.types.size()) return fail(Errc::protocol, "a bad request");
  return static_cast<std::int64_t>(memories_.add(UFFDA_TRY(offers_.types[number]->create(object, size, name))));
}

Result<std::int64_t> Child::properties(Reader& request, Writer& extra) {
  const auto source = UFFDA_TRY(sources_.find(request.number()));
  const SourceProperties properties = UFFDA_TRY(source->properties());
  extra.number(properties.size.value).number(properties.block_size.value);
  extra.number(properties.preferred_read.value).number(properties.parallel);
  return 0;
}

Result<std::int64_t> Child::fetch_and_wait(SourceOps& source, ByteOffset offset, const std::shared_ptr<Bounce>& bytes,
                                           Deadline deadline) {
  // The host has a thread waiting for this call as for any; here another one waits for the completion.
  Calls calls("its process", 1, Calls::Lost::all);
  struct Wait {
    Mutex mutex;
    CondVar there;
    std::optional<Calls::Value> value UFFDA_GUARDED_BY(mutex);
  };
  const auto wait = std::make_shared<Wait>();
  calls.start(
      "fetch", deadline,
      [&source, offset, bytes, deadline](const Calls::Answer& answer) {
        source.fetch_async(offset, bytes, deadline, answer);
      },
      [wait](Calls::Value value) {
        const MutexLock lock(wait->mutex);
        wait->value = std::move(value);
        wait->there.notify_all();
      });
  const MutexLock lock(wait->mutex);
  while (!wait->value) wait->there.wait_until(wait->mutex, Clock::now() + std::chrono::seconds(60));
  return *wait->value;
}

Result<std::int64_t> Child::fetch(Reader& request) {
  const auto source = UFFDA_TRY(sources_.find(request.number()));
  const ByteOffset offset{request.number()};
  const std::uint64_t length = request.number();
  const std::uint64_t number = request.number();
  const bool asynchronous = request.number() != 0;
  const Deadline deadline = Deadline::at(TimePoint(std::chrono::nanoseconds(request.number())));
  const std::shared_ptr<Bounce> bytes = UFFDA_TRY(buffer(length));
  const std::int64_t got =
      UFFDA_TRY(asynchronous ? fetch_and_wait(*source, offset, bytes, deadline) : source->fetch(offset, bytes));
  if (!bytes->guard_is_whole()) return fail(Errc::protocol, "it wrote beyond the end of its buffer");
  std::ranges::copy(bytes->bytes(), slot(number, length).begin());
  return got;
}

Result<std::int64_t> Child::publish(Reader& request) {
  const auto memory = UFFDA_TRY(memories_.find(request.number()));
  const ByteOffset offset{request.number()};
  const std::uint64_t length = request.number();
  const std::shared_ptr<Bounce> bytes = UFFDA_TRY(buffer(length));
  std::ranges::copy(slot(request.number(), length), bytes->bytes().begin());
  return memory->publish(offset, bytes);
}

Result<std::int64_t> Child::read(Reader& request) {
  const auto memory = UFFDA_TRY(memories_.find(request.number()));
  const ByteOffset offset{request.number()};
  const std::uint64_t length = request.number();
  const std::shared_ptr<Bounce> bytes = UFFDA_TRY(buffer(length));
  UFFDA_TRY(memory->read(offset, bytes));
  if (!bytes->guard_is_whole()) return fail(Errc::protocol, "it wrote beyond the end of its buffer");
  std::ranges::copy(bytes->bytes(), slot(request.number(), length).begin());
  return 0;
}

Result<std::int64_t> Child::run(Op op, Reader& request, Writer& extra, os::UniqueFd& passed) {
  switch (op) {
    case Op::offers:
      put_offers(extra, offers_);
      return 0;
    case Op::open:
      return open(request);
    case Op::properties:
      return properties(request, extra);
    case Op::fetch:
      return fetch(request);
    case Op::close: {
      const std::uint64_t number = request.number();
      const auto source = UFFDA_TRY(sources_.find(number));
      sources_.remove(number);
      return source->close();
    }
    case Op::create:
      return create(request);
    case Op::publish:
      return publish(request);
    case Op::drop: {
      const auto memory = UFFDA_TRY(memories_.find(request.number()));
      const ByteOffset offset{request.number()};
      return memory->drop({.start = offset, .length = {request.number()}});
    }
    case Op::read:
      return read(request);
    case Op::look_up: {
      const auto memory = UFFDA_TRY(memories_.find(request.number()));
      return memory->look_up(request.number());
    }
    case Op::mapping:
    case Op::share: {
      const auto memory = UFFDA_TRY(memories_.find(request.number()));
      passed = UFFDA_TRY(op == Op::mapping ? memory->mapping() : memory->share());
      return 0;
    }
    case Op::destroy: {
      const std::uint64_t number = request.number();
      const auto memory = UFFDA_TRY(memories_.find(number));
      memories_.remove(number);
      return memory->destroy();
    }
  }
  return fail(Errc::protocol, "the host asked for something that is not known here");
}

/// Ends the process when the host is gone, whatever the module is doing.
void end_with_host() {
  pollfd entry{.fd = kChildSocket, .events = POLLRDHUP, .revents = 0};
  while (::poll(&entry, 1, -1) <= 0) {
  }
  ::_exit(0);
}

/// Tells the host why there is no module, in the place of what it has.
int refuse(const Error& error) {
  Writer reply;
  reply.number(0);
  put_outcome(reply, std::unexpected(error));
  [[maybe_unused]] const auto told = os::send_packet(kChildSocket, reply.bytes(), {}, -1, os::Waiting::until);
  return 1;
}

}  // namespace

int run_isolated_module(const std::string& file, const std::function<Result<void>()>& confine) {
  const rlimit no_core{.rlim_cur = 0, .rlim_max = 0};
  (void)::setrlimit(RLIMIT_CORE, &no_core);
  auto staging = os::map_memory({kSlots * kSlot}, PROT_READ | PROT_WRITE, MAP_SHARED, kChildStaging);
  if (!staging) return refuse(staging.error());
  ::close(kChildStaging);
  std::thread(end_with_host).detach();
  if (auto confined = confine(); !confined) return refuse(confined.error());
  auto offers = load_direct(file, label_of(file));
  if (!offers) return refuse(offers.error());
  Child child(*std::move(offers), staging->bytes());
  const auto serve = [&child] {
    std::vector<std::byte> buffer(kMaxPacket);
    while (true) {
      // Each packet goes to one of the threads that wait here.
      const auto packet = os::receive_packet(kChildSocket, buffer, os::Waiting::until);
      if (!packet) ::_exit(0);
      child.answer(std::span(buffer).first(packet->size));
    }
  };
  for (unsigned i = 1; i < kChildThreads; ++i) std::thread(serve).detach();
  serve();
  return 0;
}

}  // namespace uffda::modules
