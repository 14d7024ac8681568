/* SPDX-License-Identifier: BSD-3-Clause */
#include "capfile/filter.h"

#include <dlfcn.h>
#include <errno.h>
#include <pcap/pcap.h>
#include <stdlib.h>

#define LIBPCAP "libpcap.so.0.8"

struct vp_filter {
	void              *lib;
	struct bpf_program prog;
	bool               compiled;
	int  (*run)(const struct bpf_program *p, const struct pcap_pkthdr *h, const u_char *data);
	void (*freecode)(struct bpf_program *p);
};

static int compile(struct vp_filter *f, const char *expr, uint32_t snaplen, struct vp_err *e)
{
	pcap_t *(*dead)(int, int) = (pcap_t * (*)(int, int)) dlsym(f->lib, "pcap_open_dead");
	int (*comp)(pcap_t *, struct bpf_program *, const char *, int, bpf_u_int32) =
		(int (*)(pcap_t *, struct bpf_program *, const char *, int, bpf_u_int32))dlsym(f->lib, "pcap_compile");
	char *(*error)(pcap_t *) = (char *(*)(pcap_t *))dlsym(f->lib, "pcap_geterr");
	void (*end)(pcap_t *) = (void (*)(pcap_t *))dlsym(f->lib, "pcap_close");
	pcap_t *p;

	f->run = (int (*)(const struct bpf_program *, const struct pcap_pkthdr *, const u_char *))dlsym(
		f->lib, "pcap_offline_filter");
	f->freecode = (void (*)(struct bpf_program *))dlsym(f->lib, "pcap_freecode");
	if (!dead || !comp || !error || !end || !f->run || !f->freecode)
		return vp_err_set(e, -ENOENT, LIBPCAP " is not the library that filters need");
	p = dead(DLT_EN10MB, (int)snaplen);
	if (!p)
		return vp_err_set(e, -ENOMEM, "out of memory");
	if (comp(p, &f->prog, expr, 1, PCAP_NETMASK_UNKNOWN))
		vp_err_set(e, -EINVAL, "filter \"%.80s\": %.120s; see pcap-filter(7)", expr, error(p));
	else
		f->compiled = true;
	end(p);
	return f->compiled ? 0 : -EINVAL;
}

int vp_filter_new(struct vp_filter **out, const char *expr, uint32_t snaplen, struct vp_err *e)
{
	struct vp_filter *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return vp_err_set(e, -ENOMEM, "out of memory");
	f->lib = dlopen(LIBPCAP, RTLD_NOW | RTLD_LOCAL);
	r = f->lib ? compile(f, expr, snaplen, e)
		   : vp_err_set(e, -ENOENT, "filters need libpcap, which is not here (%.100s); install libpcap0.8",
				dlerror());
	if (r) {
		vp_filter_free(f);
		return r;
	}
	*out = f;
	return 0;
}

bool vp_filter_match(const struct vp_filter *f, const void *data, uint32_t len, uint32_t caplen)
{
	const struct pcap_pkthdr h = { .len = len, .caplen = caplen };

	return !f || f->run(&f->prog, &h, data);
}

void vp_filter_free(struct vp_filter *f)
{
	if (!f)
		return;
	if (f->compiled)
		f->freecode(&f->prog);
	if (f->lib)
		dlclose(f->lib);
	free(f);
}
