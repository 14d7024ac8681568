// SPDX-License-Identifier: BSD-3-Clause
#include <inttypes.h>

#include "base/util.h"
#include "vfeatures.h"
#include "status.h"

static const char *attachment_name(uint32_t a)
{
	static const char *const names[] = { "unknown", "ivshmem", "shmem", "local" };

	return a < VP_ARRAY_SIZE(names) ? names[a] : names[0];
}

static const char *kind_name(uint32_t k)
{
	static const char *const names[] = { "none", "pool", "ivshmem", "shmem", "fd" };

	return k < VP_ARRAY_SIZE(names) ? names[k] : "unknown";
}

/* A string that came from outside, as JSON. */
static void json_string(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			fprintf(f, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			fprintf(f, "\\u%04x", c);
		else
			fputc(c, f);
	}
	fputc('"', f);
}

/* The same for a terminal: nothing that moves the cursor. */
static void plain_string(FILE *f, const char *s)
{
	for (; *s; s++)
		fputc((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, f);
}

static void json_features(FILE *f, const char *key, const uint64_t v[2], uint32_t type)
{
	char names[1024];

	fprintf(f, "  \"%s\": {\"bits\": [\"0x%" PRIx64 "\", \"0x%" PRIx64 "\"], \"names\": \"%s\"},\n", key, v[0],
		v[1], features_names(v, type, names, sizeof(names)));
}

static void json_queues(FILE *f, const struct vp_state *s)
{
	fputs("  \"queues\": [", f);
	for (uint32_t i = 0; i < s->nqueues; i++) {
		const struct vp_state_queue *q = &s->queues[i];

		fprintf(f,
			"%s\n    {\"queue\": %u, \"size\": %u, \"run\": %u, \"base\": %u, \"started\": %s, "
			"\"enabled\": %s, "
			"\"stop\": %s, \"broken\": %s, \"desc\": \"0x%" PRIx64 "\", \"avail\": \"0x%" PRIx64
			"\", \"used\": \"0x%" PRIx64 "\"}",
			i ? "," : "", i, q->size, q->run, q->base, q->flags & VHP_QUEUE_STARTED ? "true" : "false",
			q->flags & VHP_QUEUE_ENABLED ? "true" : "false", q->flags & VHP_QUEUE_STOP ? "true" : "false",
			q->flags & VHP_QUEUE_BROKEN ? "true" : "false", q->desc, q->avail, q->used);
	}
	fputs("\n  ],\n", f);
}

static void json_memory(FILE *f, const struct vp_state *s)
{
	bool first = true;

	fputs("  \"windows\": [", f);
	for (uint32_t i = 0; i < s->nwindows; i++) {
		const struct vp_state_window *w = &s->windows[i];

		if (w->kind == VHP_WINDOW_NONE)
			continue;
		fprintf(f, "%s\n    {\"window\": %u, \"serial\": %u, \"kind\": \"%s\", \"size\": %" PRIu64
			", \"locator\": \"0x%" PRIx64 "\", \"ready\": %s}", first ? "" : ",", i, w->serial,
			kind_name(w->kind), w->size, w->locator, w->flags & VHP_WINDOW_READY ? "true" : "false");
		first = false;
	}
	fputs("\n  ],\n  \"regions\": [", f);
	for (uint32_t i = 0; i < s->nregions; i++) {
		const struct vp_state_region *g = &s->regions[i];

		fprintf(f,
			"%s\n    {\"addr\": \"0x%" PRIx64 "\", \"size\": %" PRIu64
			", \"window\": %u, \"offset\": %" PRIu64 ", \"read\": %s, \"write\": %s}",
			i ? "," : "", g->addr, g->size, g->window, g->offset,
			g->flags & VHP_REGION_READ ? "true" : "false", g->flags & VHP_REGION_WRITE ? "true" : "false");
	}
	fputs("\n  ]\n", f);
}

static void print_json(FILE *f, const struct port *p, const struct vp_state *s, const char *problem)
{
	fputs("{\n  \"port\": ", f);
	json_string(f, p->what);
	fputs(",\n  \"name\": ", f);
	json_string(f, p->info.name);
	fputs(",\n  \"bus\": ", f);
	json_string(f, p->info.bus);
	fprintf(f, ",\n  \"attachment\": \"%s\",\n  \"max_queues\": %u,\n", attachment_name(p->info.attachment),
		p->info.max_queues);
	if (problem) {
		fputs("  \"problem\": ", f);
		json_string(f, problem);
		fputs("\n}\n", f);
		return;
	}
	fprintf(f,
		"  \"attached\": %s,\n  \"link\": \"%s\",\n  \"reason\": \"%s\",\n  \"mode\": \"%s\",\n  \"epoch\": "
		"%" PRIu64 ",\n  \"device_type\": %u,\n  \"regions_generation\": %u,\n",
		s->flags & VHP_STATE_ATTACHED ? "true" : "false", s->link_status == VHP_LINK_UP ? "up" : "down",
		vp_state_reason_str(s->link_reason), vp_state_mode_str(s->mode), s->link_epoch, s->device_type,
		s->regions_generation);
	json_features(f, "features", s->features, s->device_type);
	json_features(f, "required_features", s->required_features, s->device_type);
	json_features(f, "offered_features", s->offered_features, s->device_type);
	fputs("  \"config\": \"", f);
	for (uint32_t i = 0; i < s->config_size; i++)
		fprintf(f, "%02x", s->config[i]);
	fputs("\",\n", f);
	json_queues(f, s);
	json_memory(f, s);
	fputs("}\n", f);
}

static void print_plain(FILE *f, const struct port *p, const struct vp_state *s, const char *problem)
{
	char names[1024];

	fprintf(f, "%s: ", p->what);
	plain_string(f, p->info.name[0] ? p->info.name : "(no name)");
	fprintf(f, ", %s at ", attachment_name(p->info.attachment));
	plain_string(f, p->info.bus);
	fprintf(f, ", up to %u queues\n", p->info.max_queues);
	if (problem) {
		fprintf(f, "  problem   %s\n", problem);
		return;
	}
	fprintf(f, "  link      %s", s->link_status == VHP_LINK_UP ? "up" : "down");
	if (s->link_status != VHP_LINK_UP)
		fprintf(f, ": %s", vp_state_reason_str(s->link_reason));
	fprintf(f, "\n  attached  %s\n  mode      %s\n  device    virtio ID %u, driver VM number %" PRIu64 "\n",
		s->flags & VHP_STATE_ATTACHED ? "yes" : "no", vp_state_mode_str(s->mode), s->device_type,
		s->link_epoch);
	fprintf(f, "  features  %s\n", features_names(s->features, s->device_type, names, sizeof(names)));
	fprintf(f, "  required  %s\n", features_names(s->required_features, s->device_type, names, sizeof(names)));
	for (uint32_t i = 0; i < s->nqueues; i++) {
		const struct vp_state_queue *q = &s->queues[i];

		fprintf(f, "  queue %-3u %u entries, run %u, base %#x%s%s%s%s\n", i, q->size, q->run, q->base,
			q->flags & VHP_QUEUE_STARTED ? ", started" : "",
			q->flags & VHP_QUEUE_ENABLED ? ", enabled" : "", q->flags & VHP_QUEUE_STOP ? ", to stop" : "",
			q->flags & VHP_QUEUE_BROKEN ? ", BROKEN" : "");
	}
	for (uint32_t i = 0; i < s->nwindows; i++)
		if (s->windows[i].kind != VHP_WINDOW_NONE)
			fprintf(f, "  window %-2u %" PRIu64 " MiB, %s %#" PRIx64 ", serial %u%s\n", i,
				s->windows[i].size >> 20, kind_name(s->windows[i].kind), s->windows[i].locator,
				s->windows[i].serial, s->windows[i].flags & VHP_WINDOW_READY ? "" : ", not ready");
	for (uint32_t i = 0; i < s->nregions; i++)
		fprintf(f, "  region %-2u %#" PRIx64 " + %#" PRIx64 " in window %u at %#" PRIx64 "\n", i,
			s->regions[i].addr, s->regions[i].size, s->regions[i].window, s->regions[i].offset);
}

void status_print(FILE *f, const struct port *p, const struct vp_state *s, const char *problem, bool json)
{
	if (json)
		print_json(f, p, s, problem);
	else
		print_plain(f, p, s, problem);
}
