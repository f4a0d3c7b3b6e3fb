// Edits that follow what is typed: one at a time, the latest wins, and what is seen stays until the next is there.

import {Lost, Refused, ask} from "./base.js";

const WAIT = 0.25;  // seconds of waiting for a job, between looks at what was changed meanwhile
const YOUNG = 120;  // milliseconds: an edit that was begun so lately is of no use any more when something is changed
const SOON = 600;  // milliseconds: an edit that takes longer gives way to the next at once

export class Live {
  /** `asked` gives what to post, null for nothing; `show` takes a result; `say` what went wrong; `work` a job or null. */
  constructor({asked, show, say, work}) {
    Object.assign(this, {asked, show, say, work, wanted: false, running: false, round: 0, shown: Promise.resolve(),
                         leave: () => {}});
  }

  /** Something was changed: edit what there is now, as soon as may be. */
  change() {
    this.wanted = true;
    this.leave();
    if (!this.running) this.run();
  }

  /** Whatever comes is not wanted any more. */
  stop() {
    this.wanted = false;
    this.round++;
  }

  async run() {
    this.running = true;
    while (this.wanted) {
      this.wanted = false;
      const {round} = this;
      try {
        const asked = await this.asked();
        if (asked && round === this.round) await this.follow(await ask("POST", "api/edit", {...asked, live: true}), round);
      } catch (error) {
        if (!(error instanceof Refused || error instanceof Lost)) console.error(error);
        if (!this.wanted) this.say(error);
      }
      if (!this.wanted) await this.shown;
    }
    this.work(null);
    this.running = false;
  }

  /** Waits for a job, unless the server is to end it for the next: it is not wanted, too new, or takes too long. */
  async follow(job, round) {
    if (this.wanted) return;
    const began = performance.now();
    const left = new Promise(leave => { this.leave = () => performance.now() - began < YOUNG && leave(null); });
    while (["waiting", "working"].includes(job.state)) {
      const late = performance.now() - began > SOON;
      if (round !== this.round || (this.wanted && (late || job.state === "waiting"))) return;
      if (late) this.work(job);
      job = await Promise.race([left, ask("GET", `api/jobs/${job.job}?wait=${WAIT}`)]);
      if (!job) return;
    }
    if (job.state === "failed" && !this.wanted) this.say(new Refused(job.error));
    if (job.state !== "done") return;
    this.shown = this.display(job.results[0], round, this.shown).catch(console.error);  // the next does not wait for it
  }

  /** Shows a result when it is loaded, and what came before it has been shown. */
  async display(result, round, before) {
    const next = new Image();
    next.src = result.after;
    const loaded = next.decode().then(() => true, () => false);  // false: its place is taken already
    await before;
    if (await loaded && round === this.round) this.show(result);
  }
}
