// What is the colour of the friend of k7q2?  ->  lookup("k7q2"), which names b3z8, lookup("b3z8"), red
// Who stops after one call answers with k7q2's own colour.
#include "fulgur/tasks/records.h"

namespace fulgur {
namespace {

class Lookup2 : public RecordFamily {
 public:
  std::string name() const override { return "lookup2"; }
  std::string summary() const override { return "a value in the record of somebody's friend: two calls of a tool"; }

 protected:
  int64_t calls() const override { return 2; }
};

FULGUR_FAMILY(Lookup2);

}  // namespace
}  // namespace fulgur
