/* SPDX-License-Identifier: Apache-2.0 */
#include <stdexcept>
#include <string>
struct shape {
	virtual ~shape();
	virtual int area(int x) const;
	virtual const char *name() const;
};
struct error : std::runtime_error {
	explicit error(const std::string &s);
	int code;
};
shape *make_shape(int kind);
int risky(int x);                       /* throws error when x is odd */
int catches(int (*f)(int), int x);      /* -1 when f throws */
int passes(int (*f)(int), int x);       /* what f throws goes through it */
const std::string &tag();
