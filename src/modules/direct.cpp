// Modules in this process.
#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "modules/ops.h"

namespace uffda::modules {
namespace {

/// Fetches that modules have not completed. An entry keeps its buffer, for the module may still write to it.
class Tokens {
 public:
  struct Pending {
    Calls::Answer answer;
    std::shared_ptr<Bounce> buffer;
    std::string label;
  };

  static Tokens& instance() {
    static auto* const tokens = new Tokens;  // modules complete while static objects go away
    return *tokens;
  }

  std::uint64_t add(Pending pending) {
    const MutexLock lock(mutex_);
    const auto label = std::ranges::find(labels_, pending.label);
    const auto number = static_cast<std::uint64_t>(label - labels_.begin());
    if (label == labels_.end()) labels_.push_back(pending.label);
    const std::uint64_t token = number << kLabelShift | next_++;
    pending_.emplace(token, std::move(pending));
    return token;
  }

  static void complete(std::uint64_t token, std::int64_t result, const char* text) noexcept {
    instance().answer(token, result, printable(text));
  }

 private:
  void answer(std::uint64_t token, std::int64_t result, const std::string& text) {
    std::optional<Pending> pending;
    std::string label = "a module";
    {
      const MutexLock lock(mutex_);
      if (token >> kLabelShift < labels_.size()) label = labels_[token >> kLabelShift];
      const auto found = pending_.find(token);
      if (found != pending_.end()) {
        pending.emplace(std::move(found->second));
        pending_.erase(found);
      }
    }
    if (!pending) {
      complain(label, "a fetch was completed twice, or was never asked for");
      return;
    }
    const bool in_time =
        result >= 0 ? pending->answer(result) : pending->answer(std::unexpected(error_of(result, text)));
    if (!in_time) complain(label, "a fetch was completed after its deadline");
  }

  static constexpr unsigned kLabelShift = 44;  // below it counts; above it says whose fetch it is

  Mutex mutex_;
  std::vector<std::string> labels_ UFFDA_GUARDED_BY(mutex_);
  std::map<std::uint64_t, Pending> pending_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t next_ UFFDA_GUARDED_BY(mutex_) = 1;
};

/// A call that returns 0 or a negative errno.
template <typename Call>
Result<std::int64_t> status_call(Call&& call) {
  ErrorText text;
  const std::int64_t status = UFFDA_TRY(guarded([&] { return call(text.c_error()); }));
  if (status != 0) return std::unexpected(error_of(status, text.text()));
  return 0;
}

class DirectSource final : public SourceOps {
 public:
  DirectSource(const uffda_source& abi, void* source, std::string label)
      : abi_(abi), source_(source), label_(std::move(label)) {}

  Result<SourceProperties> properties() override {
    uffda_source_properties properties{UFFDA_HEADER(struct uffda_source_properties), 0, 1, 65536, 16};
    UFFDA_TRY(status_call([&](uffda_error* error) { return abi_.properties(source_, &properties, error); }));
    return SourceProperties{.size = {properties.size},
                            .block_size = {properties.block_size},
                            .preferred_read = {properties.preferred_read},
                            .parallel = properties.parallel};
  }

  Result<std::int64_t> fetch(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) override {
    ErrorText text;
    const std::span<std::byte> bytes = buffer->bytes();
    const std::int64_t got = UFFDA_TRY(
        guarded([&] { return abi_.fetch(source_, offset.value, bytes.data(), bytes.size(), text.c_error()); }));
    if (got < 0) return std::unexpected(error_of(got, text.text()));
    return got;
  }

  void fetch_async(ByteOffset offset, const std::shared_ptr<Bounce>& buffer, Deadline deadline,
                   const Calls::Answer& answer) override {
    const std::span<std::byte> bytes = buffer->bytes();
    const auto when = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.when().time_since_epoch()).count();
    const uffda_fetch fetch{UFFDA_HEADER(struct uffda_fetch),
                            offset.value,
                            bytes.size(),
                            bytes.data(),
                            static_cast<std::uint64_t>(when),
                            Tokens::instance().add({.answer = answer, .buffer = buffer, .label = label_}),
                            &Tokens::complete};
    const auto called = guarded([&] {
      abi_.fetch_async(source_, &fetch);
      return 0;
    });
    if (!called) (void)answer(std::unexpected(called.error()));
  }

  Result<std::int64_t> close() override {
    return guarded([&] {
      abi_.close(source_);
      return 0;
    });
  }

 private:
  const uffda_source abi_;
  void* const source_;
  const std::string label_;
};

class DirectSourceKind final : public SourceKind {
 public:
  DirectSourceKind(const uffda_source& abi, SourceAbout about, std::string label)
      : abi_(abi), about_(std::move(about)), label_(std::move(label)) {}

  [[nodiscard]] const SourceAbout& about() const override { return about_; }

  Result<std::shared_ptr<SourceOps>> open(const Arguments& arguments) override {
    std::vector<uffda_argument> list;
    for (const auto& [key, value] : arguments) list.push_back({key.c_str(), value.c_str()});
    const uffda_arguments given{UFFDA_HEADER(struct uffda_arguments), list.size(), list.data()};
    void* source = nullptr;
    UFFDA_TRY(status_call([&](uffda_error* error) { return abi_.open(&given, &source, error); }));
    if (source == nullptr) return fail(Errc::protocol, "it succeeded without a source");
    return std::make_shared<DirectSource>(abi_, source, label_ + ", source " + about_.name);
  }

 private:
  const uffda_source abi_;
  const SourceAbout about_;
  const std::string label_;
};

class DirectMemory final : public MemoryOps {
 public:
  DirectMemory(const uffda_memory_type& abi, void* memory, std::uint64_t object, ByteCount size)
      : abi_(abi), memory_(memory), object_(object), size_(size) {}

  Result<std::int64_t> publish(ByteOffset offset, const std::shared_ptr<Bounce>& bytes) override {
    const std::span<std::byte> contents = bytes->bytes();
    UFFDA_TRY(status_call([&](uffda_error* error) {
      return abi_.publish(memory_, offset.value, contents.data(), contents.size(), error);
    }));
    return expect({.start = offset, .length = {contents.size()}}, 1, "it published a folio and does not find it");
  }

  Result<std::int64_t> drop(ByteRange range) override {
    UFFDA_TRY(status_call(
        [&](uffda_error* error) { return abi_.drop(memory_, range.start.value, range.length.value, error); }));
    return expect(range, 0, "it dropped a folio and still finds it");
  }

  Result<std::int64_t> read(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) override {
    const std::span<std::byte> bytes = buffer->bytes();
    return status_call(
        [&](uffda_error* error) { return abi_.read(memory_, offset.value, bytes.data(), bytes.size(), error); });
  }

  Result<std::int64_t> look_up(FolioIndex index) override;

  Result<os::UniqueFd> mapping() override {
    const int theirs = UFFDA_TRY(descriptor([&](uffda_error* error) { return abi_.mapping(memory_, error); }));
    os::UniqueFd ours(::fcntl(theirs, F_DUPFD_CLOEXEC, 3));
    if (!ours) return fail(Errc::protocol, fmt::format("it returned {}, which is no open descriptor", theirs));
    return ours;
  }

  Result<os::UniqueFd> share() override {
    os::UniqueFd fd(UFFDA_TRY(descriptor([&](uffda_error* error) { return abi_.share(memory_, error); })));
    if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) == 0) return fd;
    return fail(Errc::protocol, fmt::format("it returned {}, which is no open descriptor", fd.release()));
  }

  Result<std::int64_t> destroy() override {
    return guarded([&] {
      abi_.destroy(memory_);
      return 0;
    });
  }

 private:
  template <typename Call>
  static Result<int> descriptor(Call&& call) {
    ErrorText text;
    const std::int64_t fd = UFFDA_TRY(guarded([&] { return call(text.c_error()); }));
    if (fd < 0) return std::unexpected(error_of(fd, text.text()));
    return static_cast<int>(fd);
  }

  Result<std::int64_t> expect(ByteRange range, std::int64_t cached, const char* otherwise) {
    if ((abi_.ioctls & UFFDA_IOCTL_CONTINUE) == 0) return 0;
    for (FolioIndex i = range.start.value / abi_.folio_size; i * abi_.folio_size < range.end().value; ++i) {
      if (UFFDA_TRY(look_up(i)) != cached) return fail(Errc::protocol, fmt::format("{}: number {}", otherwise, i));
    }
    return 0;
  }

  [[nodiscard]] Result<void> check(const uffda_folio& folio, FolioIndex index) const;
  Result<void> give_back(const uffda_folio& folio);

  const uffda_memory_type abi_;
  void* const memory_;
  const std::uint64_t object_;
  const ByteCount size_;
};

Result<void> DirectMemory::check(const uffda_folio& folio, FolioIndex index) const {
  const auto wrong = [&](const std::string& what) {
    return fail(Errc::protocol, fmt::format("the folio it returned for number {} {}", index, what));
  };
  if (folio.object != object_) return wrong(fmt::format("is of another object ({}, not {})", folio.object, object_));
  if (folio.index != index) return wrong(fmt::format("has number {}", folio.index));
  if (folio.bytes != abi_.folio_size) return wrong(fmt::format("has {} bytes", folio.bytes));
  if (folio.offset % abi_.folio_size != 0) return wrong(fmt::format("is not aligned: offset {}", folio.offset));
  if (folio.offset != index * abi_.folio_size) return wrong(fmt::format("stands at offset {}", folio.offset));
  if (folio.locked != 1) return wrong("is not locked");
  if (folio.references == 0) return wrong("is not referenced");
  return {};
}

Result<void> DirectMemory::give_back(const uffda_folio& folio) {
  const std::int64_t left = UFFDA_TRY(guarded([&] { return abi_.release(memory_, &folio); }));
  // Others may take and give references of the same folio meanwhile, but only with the parallel thread model.
  const std::int64_t expected = std::int64_t{folio.references} - 1;
  if (abi_.thread_model == UFFDA_PARALLEL ? left >= 0 : left == expected) return {};
  return fail(Errc::protocol, fmt::format("release of a folio with {} references left {}, not {}: released twice?",
                                          folio.references, left, expected));
}

Result<std::int64_t> DirectMemory::look_up(FolioIndex index) {
  constexpr int kAttempts = 1000;
  if (index * abi_.folio_size >= size_.value) return fail(Errc::out_of_range, "beyond the end of the object");
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    uffda_folio folio{};
    folio.header = UFFDA_HEADER(struct uffda_folio);
    ErrorText text;
    const std::int64_t said = UFFDA_TRY(guarded([&] {
      return abi_.get_folio != nullptr
                 ? abi_.get_folio(memory_, index, &folio, text.c_error())
                 : abi_.fault(memory_, index, UFFDA_FAULT_USERFAULT_CONTINUE, &folio, text.c_error());
    }));
    if (said == UFFDA_FOLIO_RETRY) continue;
    if (said == UFFDA_FOLIO_ABSENT) return 0;
    if (said != UFFDA_FOLIO_READY) return std::unexpected(error_of(said, text.text()));
    UFFDA_TRY_VOID(check(folio, index));
    UFFDA_TRY_VOID(give_back(folio));
    return 1;
  }
  return fail(Errc::protocol, fmt::format("it said {} times to ask again for folio {}", kAttempts, index));
}

class DirectTypeKind final : public TypeKind {
 public:
  DirectTypeKind(const uffda_memory_type& abi, TypeAbout about) : abi_(abi), about_(std::move(about)) {}

  [[nodiscard]] const TypeAbout& about() const override { return about_; }

  Result<std::shared_ptr<MemoryOps>> create(std::uint64_t object, ByteCount size, const std::string& name) override {
    void* memory = nullptr;
    UFFDA_TRY(
        status_call([&](uffda_error* error) { return abi_.create(object, size.value, name.c_str(), &memory, error); }));
    if (memory == nullptr) return fail(Errc::protocol, "it succeeded without a memory");
    return std::make_shared<DirectMemory>(abi_, memory, object, size);
  }

 private:
  const uffda_memory_type abi_;
  const TypeAbout about_;
};

/// What the module's entry point is given.
class Registration {
 public:
  explicit Registration(std::string label)
      : registry_{UFFDA_HEADER(struct uffda_registry), &Registration::add_source, &Registration::add_type},
        label_(std::move(label)) {}
  uffda_registry* c_registry() { return &registry_; }
  [[nodiscard]] const std::optional<Error>& refused() const { return refused_; }
  Offers take() { return std::move(offers_); }

 private:
  static Registration& of(uffda_registry* registry) { return *reinterpret_cast<Registration*>(registry); }
  int note(const Result<void>& added) {
    if (added) return 0;
    if (!refused_) refused_ = added.error();
    return -EINVAL;
  }
  static int add_source(uffda_registry* registry, const uffda_source* source) noexcept {
    Registration& self = of(registry);
    return self.note([&]() -> Result<void> {
      const uffda_source abi = UFFDA_TRY(adopt(source, "source"));
      self.offers_.sources.push_back(
          std::make_shared<DirectSourceKind>(abi, UFFDA_TRY(check_source(abi)), self.label_));
      return {};
    }());
  }
  static int add_type(uffda_registry* registry, const uffda_memory_type* type) noexcept {
    Registration& self = of(registry);
    return self.note([&]() -> Result<void> {
      const uffda_memory_type abi = UFFDA_TRY(adopt(type, "memory type"));
      self.offers_.types.push_back(std::make_shared<DirectTypeKind>(abi, UFFDA_TRY(check_type(abi))));
      return {};
    }());
  }

  uffda_registry registry_;  // first: the functions find the rest from it
  std::string label_;
  Offers offers_;
  std::optional<Error> refused_;
};

}  // namespace

Result<Offers> load_direct(const std::string& path, const std::string& label) {
  void* const object = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) {
    const char* why = ::dlerror();
    return fail(::access(path.c_str(), F_OK) == 0 ? Errc::invalid_argument : Errc::not_found,
                why != nullptr ? why : "dlopen failed");
  }
  using Register = int (*)(uffda_registry*);
  const auto entry = reinterpret_cast<Register>(::dlsym(object, "uffda_module_register"));
  if (entry == nullptr)
    return fail(Errc::invalid_argument, "it has no function uffda_module_register: it is not a module");
  Registration registration(label);
  const auto registered = guarded([&] { return entry(registration.c_registry()); });
  if (!registered) return std::unexpected(registered.error());
  if (registration.refused()) return std::unexpected(*registration.refused());
  if (*registered != 0) return std::unexpected(error_of(*registered, "uffda_module_register"));
  Offers offers = registration.take();
  if (offers.sources.empty() && offers.types.empty()) return fail(Errc::invalid_argument, "it registers nothing");
  return offers;
}

}  // namespace uffda::modules
