package host

import (
	"fmt"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/spool"
)

// pointSpace holds what the Watch of a source keeps of its points: key: point,
// value: its note.
func pointSpace(source string) string { return spacePoints + "\x00" + source }

// pointSets are the notes of a source as a commit record takes them.
func pointSets(source string, notes []sources.PointNote) []spool.Set {
	sets := make([]spool.Set, len(notes))
	for i, n := range notes {
		sets[i] = spool.Set{Space: pointSpace(source), Key: n.Key, Value: n.Value}
	}
	return sets
}

// recallPoints has the Watch of a source know the points of before a restart,
// unless its configuration names others now. An error leaves them unknown: they
// are known again when they speak.
func (h *Host) recallPoints(sc SourceConfig, w *sources.Watch) error {
	was, err := h.state.Get(spacePoints, sc.Name)
	if err != nil {
		return fmt.Errorf("read which points were watched: %w", err)
	}
	if was != nil && string(was) != sc.Points {
		if err := h.forgetPoints(sc.Name); err != nil {
			return err
		}
		was = nil
	}
	if was == nil {
		if sc.Points == "" {
			return nil
		}
		return h.state.Commit([]spool.Set{{Space: spacePoints, Key: sc.Name, Value: []byte(sc.Points)}})
	}
	forget, err := w.Recall(func(fn func(string, []byte) error) error { return h.state.Scan(pointSpace(sc.Name), fn) })
	if err != nil {
		return err
	}
	return h.commitInParts(pointSets(sc.Name, forget))
}

// forgetPoints deletes what is kept of the points of a source.
func (h *Host) forgetPoints(source string) error {
	var sets []spool.Set
	err := h.state.Scan(pointSpace(source), func(key string, _ []byte) error {
		sets = append(sets, spool.Set{Space: pointSpace(source), Key: key})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the points to forget: %w", err)
	}
	// Last of all that there were any: a crash on the way has the rest deleted later.
	return h.commitInParts(append(sets, spool.Set{Space: spacePoints, Key: source}))
}

// forgetStrayPoints deletes what is kept of the points of sources that are no
// longer configured.
func (h *Host) forgetStrayPoints() error {
	var strays []string
	err := h.state.Scan(spacePoints, func(source string, _ []byte) error {
		for _, sc := range h.cfg.Sources {
			if sc.Name == source {
				return nil
			}
		}
		strays = append(strays, source)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read whose points were watched: %w", err)
	}
	for _, source := range strays {
		if err := h.forgetPoints(source); err != nil {
			return fmt.Errorf("forget the points of %s, which is no longer configured: %w", source, err)
		}
	}
	return nil
}

// commitInParts commits changes that need not be made together.
func (h *Host) commitInParts(sets []spool.Set) error {
	for len(sets) > 0 {
		n := min(len(sets), maxGroupRecords)
		if err := h.state.Commit(sets[:n]); err != nil {
			return fmt.Errorf("forget points: %w", err)
		}
		sets = sets[n:]
	}
	return nil
}
