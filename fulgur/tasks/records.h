// Made-up accounts, and families that ask about one through the tool lookup(name).
#pragma once

#include <string>
#include <vector>

#include "fulgur/tasks/task.h"

namespace fulgur {

// A record is a function of the book and the name: whoever looks up a wrong name gets a record as good as any.
struct RecordBook {
  uint64_t seed = 0;
  bool fresh = false;    // which names friends have
  bool friends = false;  // whether records name one
  int64_t fields = 1;    // of colour, pet, fruit: the first so many

  Json record(const std::string& name) const;
};

// What a field of the record is that stands at the end of a chain of friends; a link a call. Difficulty: fields a record.
class RecordFamily : public Family {
 public:
  int64_t hardest() const final;
  std::unique_ptr<Episode> begin(const Task& task) const final;
  Message solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const final;

 protected:
  virtual int64_t calls() const = 0;
  Task draw(int64_t difficulty, bool fresh, RandomStream& random) const final;
};

}  // namespace fulgur
